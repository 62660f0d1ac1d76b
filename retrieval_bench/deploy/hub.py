"""Embedders on the Hugging Face Hub: uploaded, and downloaded as JSON and safetensors only, never as pickles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retrieval_bench.errors import UserError, first_line

PREFIX = "hf:"
"""What the name of an embedder on the Hub begins with: ``hf:OWNER/NAME`` or ``hf:OWNER/NAME@REVISION``."""
LOGIN = "`hf auth login` or the variable HF_TOKEN gives one"


def check_login(repo: str) -> None:
    """Raises :class:`UserError` now, rather than after an export, without huggingface_hub or a token."""
    with _hub(repo) as hub:
        token = hub.get_token()
    if token is None:
        raise UserError(f"{repo}: uploading needs a token that may write there; {LOGIN}")


def upload(folder: Path, files: Sequence[str], repo: str, private: bool) -> str:
    """Uploads these `files` of a folder, and no others, to a repository of models in one commit; makes the repository
    if there is none.

    Args:
        folder: what :func:`retrieval_bench.deploy.export.export` wrote.
        files: names in it.
        repo: ``OWNER/NAME``.
        private: hide the repository from others; one that is there and public is refused.

    Returns:
        The address of the repository.

    Raises:
        UserError: no token, a repository that it may not write to or that is public, or no connection.
    """
    with _hub(repo) as hub:
        api = hub.HfApi(library_name="retrieval_bench")
        address = api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo).private:
            raise UserError(f"{repo}: is there already, and everybody can see it; push without --private, or elsewhere")
        message = "Upload the embedder with retrieval_bench"
        api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=list(files), commit_message=message)
    return str(address)


def download(name: str, files: Sequence[str]) -> Path:
    """The folder in the Hub's cache that holds those of `files` that a repository has; nothing else is downloaded.

    Args:
        name: ``hf:OWNER/NAME``, with a branch, tag or commit behind ``@``.
        files: names in the repository.

    Raises:
        UserError: no such repository or revision, one that is hidden from the user, or no connection.
    """
    repo, _, revision = name.removeprefix(PREFIX).partition("@")
    with _hub(name) as hub:
        api = hub.HfApi(library_name="retrieval_bench")
        return Path(api.snapshot_download(repo, revision=revision or None, allow_patterns=list(files)))


@contextmanager
def _hub(where: str) -> Iterator[Any]:
    """Yields huggingface_hub; its exceptions become one line that begins with `where`."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        missing = 'huggingface_hub must be installed first: pip install "retrieval_bench[hub]"'
        raise UserError(f"{where}: {missing}") from None
    try:
        yield huggingface_hub
    except UserError:
        raise
    except errors.RevisionNotFoundError:
        reason = "the repository has no such revision"
    except errors.GatedRepoError:
        reason = "its owner gives access on request, on its page on the Hub"
    except errors.RepositoryNotFoundError:
        reason = f"no such repository, or a private one that your token does not open ({LOGIN})"
    except errors.HFValidationError:
        reason = "not the name of a repository: OWNER/NAME, of letters, digits, '-', '_' and '.'"
    except errors.HfHubHTTPError as error:
        refused = error.response.status_code in (401, 403)
        reason = f"the Hub refuses your token for this ({LOGIN})" if refused else f"the Hub says: {first_line(error)}"
    except Exception as error:  # of the connection, whose library differs with the version of huggingface_hub
        reason = f"the Hub cannot be reached or understood ({first_line(error)})"
    else:
        return
    raise UserError(f"{where}: {reason}")
