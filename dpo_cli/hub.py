"""Uploading to the Hugging Face hub: which files may go, and what can go wrong.

The token is the one that huggingface_hub itself finds (``HF_TOKEN``, or what ``hf auth login`` kept). It is looked at
only to see that no file and no message holds it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from json import JSONDecodeError
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from dpo_cli.answers import bounded_answers
from dpo_cli.errors import DpoError, StorageError, one_line
from dpo_cli.secret import find, hide

WEIGHTS = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
)
CONFIGS = ("config.json", "adapter_config.json")
"""A model folder has one of them."""
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)
ALLOWED = (
    *WEIGHTS,
    *CONFIGS,
    *TOKENIZER,
    *("generation_config.json", "config.yaml", "README.md"),
    *("LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.md", "NOTICE.txt"),
)
"""The only files that are ever uploaded."""
_NO_TEXT = ".safetensors"


@dataclass(frozen=True)
class File:
    """One file to upload."""

    name: str
    """In the repository."""
    content: Path | bytes
    note: str = ""
    """For people: what was done to it."""

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def read(self) -> bytes:
        """All of it."""
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


@dataclass(frozen=True)
class Pushed:
    """What came of an upload."""

    url: str
    """Of the commit."""
    private: bool
    deleted: list[str]
    """Files of an earlier model, which would have been loaded with this one's."""


def check_name(repo: str) -> None:
    """Refuse what is no OWNER/NAME.

    Raises:
        DpoError: saying what was expected.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError:
        pass
    else:
        if repo.count("/") == 1:
            return
    raise DpoError(
        f"push: {one_line(repo)} is not the name of a repository; expected OWNER/NAME, of letters, digits, '-', '_' "
        "and '.'"
    )


def choose(folder: Path) -> tuple[list[File], list[str]]:
    """The files of a model folder that may be uploaded, and the names of those that are not.

    Links are not followed: what they lead to was not put into the folder.

    Raises:
        DpoError: there is no model in it.
    """
    chosen, left_out = [], []
    for path in sorted(_files(folder)):
        name = path.relative_to(folder).as_posix()
        if not path.is_symlink() and any(fnmatchcase(name, pattern) for pattern in ALLOWED):
            chosen.append(File(name, path))
        else:
            left_out.append(name)
    names = {file.name for file in chosen}
    if not names & set(CONFIGS) or not any(name.endswith(_NO_TEXT) for name in names):
        raise DpoError(
            f"push: {folder} is no model to upload: expected config.json or adapter_config.json, and weights in "
            "safetensors (pickles are not uploaded)"
        )
    return chosen, left_out


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        else:
            yield path


def check_secrets(files: Sequence[File]) -> None:
    """Refuse files that hold a secret: see ``secret``.

    Raises:
        DpoError: naming the file and what it holds, not the value.
    """
    variables = _variables()
    for file in files:
        if file.name.endswith(_NO_TEXT):
            continue
        if held := find(file.read().decode("utf-8", "replace"), variables):
            raise DpoError(f"push: {file.name} holds {held}: nothing was uploaded; take it out, and try again")


def upload(
    files: Sequence[File], repo: str, *, public: bool, revision: str | None, message: str, description: str
) -> Pushed:
    """Upload in one commit, to a repository that is made if it isn't there.

    Args:
        files: all of them.
        repo: OWNER/NAME.
        public: whether others may see it; a private repository stays so in any case.
        revision: a branch, made if it isn't there; None = main.
        message: of the commit.
        description: more of it.

    Raises:
        DpoError: no token, or the hub refused; or there is a public repository and ``public`` is False.
        StorageError: the hub can't be reached, it failed, or its answer does not end.
    """
    if not get_token():
        raise DpoError("push: no token for the hub: set HF_TOKEN to one that may write, or run `hf auth login`")
    try:
        with bounded_answers():
            return _upload(files, repo, public=public, revision=revision, message=message, description=description)
    except DpoError:
        raise
    except Exception as error:
        explained = _explained(error, repo)
        if explained is None:
            raise
        raise explained from None


def _upload(
    files: Sequence[File], repo: str, *, public: bool, revision: str | None, message: str, description: str
) -> Pushed:
    api = HfApi()
    api.create_repo(repo, private=not public, exist_ok=True)
    there = api.model_info(repo)
    if not there.private and not public:
        raise DpoError(f"push: {repo} is there and public: add --public to publish, or choose another name")
    if revision is not None:
        api.create_branch(repo, branch=revision, exist_ok=True)
        there = api.model_info(repo, revision=revision)
    stale = _stale([sibling.rfilename for sibling in there.siblings or []], [file.name for file in files])
    added = [CommitOperationAdd(file.name, file.content) for file in files]
    removed = [CommitOperationDelete(name) for name in stale]
    commit = api.create_commit(
        repo, [*added, *removed], commit_message=message, commit_description=description, revision=revision
    )
    return Pushed(commit.commit_url, bool(there.private), stale)


def _stale(there: Sequence[str], pushed: Sequence[str]) -> list[str]:
    """Weights and configurations of another model: an adapter's beside merged weights, shards of a larger one."""
    loaded = (*WEIGHTS, *CONFIGS)
    return [name for name in there if name not in pushed and any(fnmatchcase(name, pattern) for pattern in loaded)]


def _explained(error: Exception, repo: str) -> DpoError | None:
    """In one line, and with what to do; None for what is not the hub's or the network's doing."""
    cause = error.__cause__ if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception) else error
    if isinstance(cause, DpoError):  # from a thread of an upload
        return cause
    said = hide(one_line(str(getattr(cause, "server_message", None) or cause).strip(), 200), _variables())
    if isinstance(cause, HfHubHTTPError):
        status = int(cause.response.status_code)
        if status >= 500 or status == 429:
            return StorageError(f"push: the hub failed ({status}: {said}); nothing was committed, try again later")
        return DpoError(f"push: {_REFUSED.get(status, 'the hub refused').format(repo=repo)} ({status}: {said})")
    if isinstance(cause, ValueError) and said.startswith("Invalid metadata"):
        return DpoError(f"push: {said}; nothing was committed, put its first lines right")
    if isinstance(cause, JSONDecodeError | KeyError):  # the page of a proxy that wants a login, say
        return StorageError(
            f"push: {constants.ENDPOINT} does not answer as a hub does ({said}): look at HF_ENDPOINT, and at the proxy"
        )
    module = type(cause).__module__.partition(".")[0]
    if isinstance(cause, OSError | RuntimeError) or module.startswith("httpx"):
        return StorageError(
            f"push: {constants.ENDPOINT} could not be reached ({said}); nothing was committed, the same command tries "
            "again"
        )
    return None


_REFUSED = {
    401: "the hub does not know the token: set HF_TOKEN to one that is valid, or run `hf auth login`",
    402: "the hub wants payment for this",
    403: "the token may not write to {repo}: give it write access, or choose an owner it may write to",
    404: "there is no {repo}, or the token may not see it: check the owner's name and the token's rights",
    409: "{repo} is in conflict with what is there: choose another name",
}


def _variables() -> dict[str, str]:
    """The environment, with the token that huggingface_hub may have from a login."""
    token = get_token()
    return {**os.environ, **({"HF_TOKEN": token} if token else {})}
