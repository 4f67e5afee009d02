"""Upload of an export to a repository of the Hugging Face hub."""

from pathlib import Path

from pact_lightning.export.card import CardForm, is_hub_id
from pact_lightning.policy.loading import PolicyConfig


def check_push(repository: str, form: CardForm, config: PolicyConfig) -> None:
    """Refuse an upload that could not succeed, or that nobody else could load, before anything is exported.

    Args:
        repository: Name of the repository, such as ``me/my-agent``.
        form: What is uploaded.
        config: The policy.

    Raises:
        ValueError: The name is none, or an adapter's base is a folder of this machine.
        OSError: The hub does not answer, or does not know the user.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # exported without __all__

    from pact_lightning.utils.hub import use_cache_where_unreachable

    validate_repo_id(repository)
    if form == "adapter" and not is_hub_id(config):
        raise ValueError(
            f"the base {config.model} is on this machine alone, so nobody else could load the adapter; push it "
            "`merged`, or name the base's hub id by --model"
        )
    if use_cache_where_unreachable():
        raise OSError(
            f"the hub at {constants.ENDPOINT} cannot be reached, so nothing is pushed; export without --push, and "
            f"upload the folder later with `hf upload {repository} FOLDER`"
        )
    try:
        HfApi().whoami()
    except (LocalTokenNotFoundError, HfHubHTTPError) as error:
        raise OSError(
            f"the hub does not know you ({str(error).splitlines()[0]}); log in with `hf auth login`, or set HF_TOKEN"
        ) from error


def push(folder: Path, repository: str) -> str:
    """Upload a folder as one commit; a repository that is not there is made, private [D].

    Args:
        folder: The export.
        repository: Name of the repository.

    Returns:
        Its address.

    Raises:
        OSError: The hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        made = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Upload by pact-lightning export")
    except HfHubHTTPError as error:
        raise OSError(
            f"the hub refuses {repository}: {' '.join(str(error).split())}; the export is in {folder}, and `hf upload "
            f"{repository} {folder}` tries again"
        ) from error
    return str(made)
