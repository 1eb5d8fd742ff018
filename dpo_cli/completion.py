"""Tab completion. Hydra knows the keys and options; its own completion breaks on a subcommand, so that is cut off."""

from __future__ import annotations

from collections.abc import Sequence

from dpo_cli.errors import DpoError

_SCRIPTS = {
    "bash": """\
# in ~/.bashrc:  eval "$(dpo completion bash)"
_dpo_complete() {
  local IFS=$'\\n'
  COMPREPLY=($(dpo _complete "${COMP_LINE:0:COMP_POINT}" 2>/dev/null))
}
# '=' separates words for bash, but not here
COMP_WORDBREAKS=${COMP_WORDBREAKS//=/}
complete -o nospace -o default -F _dpo_complete dpo
""",
    "zsh": """\
# in ~/.zshrc:  eval "$(dpo completion zsh)"
_dpo_complete() {
  local -a found
  found=("${(@f)$(dpo _complete "${BUFFER[1,CURSOR]}" 2>/dev/null)}")
  compadd -S '' -- $found
}
compdef _dpo_complete dpo
""",
    "fish": """\
# in ~/.config/fish/config.fish:  dpo completion fish | source
complete -c dpo -f -a '(dpo _complete (commandline -cp))'
""",
}


def script(arguments: Sequence[str]) -> str:
    """The completion script for a shell."""
    if len(arguments) != 1 or arguments[0] not in _SCRIPTS:
        raise DpoError(f"usage: dpo completion SHELL, where SHELL is one of {', '.join(_SCRIPTS)}")
    return _SCRIPTS[arguments[0]]


def candidates(line: str, commands: Sequence[str]) -> list[str]:
    """What may stand in place of the last word of ``line`` (``dpo train loss.b``)."""
    words = line.split()
    if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
        start = words[1] if len(words) == 2 else ""
        return [f"{command} " for command in commands if command.startswith(start)]
    from dpo_cli.compose import SCHEMAS, complete

    if words[1] not in SCHEMAS:
        return []
    rest = line.split(words[1], 1)[1].lstrip()
    return sorted(set(complete(words[1], rest)))
