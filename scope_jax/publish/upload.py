"""Uploading the model of a finished run."""

import re
from pathlib import Path

from scope_jax import hub, models
from scope_jax.errors import StorageError
from scope_jax.publish.card import model_card
from scope_jax.run import write_atomically


def publish(
    workdir: Path, name: str | None, *, private: bool = False, dry_run: bool = False
) -> str:
    """Write the card and upload `workdir/model`; returns the address, or the card's path in a dry
    run. Raises FileNotFoundError for a run that is not finished, ValueError for a bad name and what
    the hub refuses, StorageError where it cannot be reached."""
    if not dry_run and not (name and re.fullmatch(r"[\w.-]+/[\w.-]+", name)):
        raise ValueError(f"--name={name}: expected ORGANISATION/NAME")
    folder = workdir / "model"
    card = model_card(workdir)
    models.check_files(folder)
    write_atomically(folder / "README.md", card)
    if dry_run:
        return str(folder / "README.md")
    assert name is not None
    return _upload(folder, name, private)


def _upload(folder: Path, name: str, private: bool) -> str:
    import huggingface_hub
    from huggingface_hub import errors

    api = huggingface_hub.HfApi()
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=[*hub.MODEL_FILES, "README.md"],
            commit_message="Model of a scope_jax run",
        )
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise ValueError(
                f"{name}: the hub refuses ({hub.one_line(error)}); log in with `hf auth login`, or"
                f" set HF_TOKEN to a token that may write to {name.partition('/')[0]}"
            ) from None
        if hub.is_refused(error):
            raise ValueError(f"{name}: the hub refuses ({hub.one_line(error)})") from None
        raise StorageError(
            f"{name}: the upload failed ({hub.one_line(error)}); start the same command again"
        ) from None
    except Exception as error:
        if not hub.is_of_the_network(error):
            raise
        raise StorageError(
            f"{name}: the upload was cut ({hub.one_line(error)}); start the same command again"
        ) from None
    return str(address)
