"""Why the hub could not be read, in words: whatever a library makes of it, its first cause says so.

Transformers may end in `Can't load the model`, datasets in `An error occurred while generating the dataset`.
"""

from __future__ import annotations

from .unwritable import chain

# What the hub's client and Transformers say of a file that is not in the cache while the hub is not asked.
NOT_IN_THE_CACHE = ("LocalEntryNotFoundError", "OfflineModeIsEnabled")
NO_SUCH_FILE = "does not appear to have a file named"
BUSY = (408, 425, 429)  # statuses that mean: later; so does every one from 500 on

HUB_ADVICE = (
    "Connect, and run again: files that came whole are kept, in the cache of the hub. Or name a copy on this machine."
)


def unreachable_reason(error: BaseException) -> str | None:
    """What the hub or the way to it has answered, where that is why something could not be loaded; else None."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        if any(_is_of_the_cache(link) for link in chain(error)):
            return (
                f"its copy in the cache of the hub is not whole, and {constants.ENDPOINT} is not asked (HF_HUB_OFFLINE)"
            )
        return None
    for link in chain(error):
        status = status_of(link)
        if status is not None and (status >= 500 or status in BUSY):
            return f"{constants.ENDPOINT} answers with HTTP status {status}"
        if _is_of_the_connection(link):
            return f"the connection to {constants.ENDPOINT} broke ({_in_words(link)})"
    return None


def status_of(error: BaseException) -> int | None:
    """The HTTP status of the answer that an error is of, whichever library has asked; None where there was none."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _is_of_the_cache(error: BaseException) -> bool:
    text = str(error)
    is_named = any(name in text or type(error).__name__ == name for name in NOT_IN_THE_CACHE)
    return is_named or NO_SUCH_FILE in text


def _is_of_the_connection(error: BaseException) -> bool:
    """The hub's client has asked through httpx and then httpx2, whose errors have one base of the same name."""
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)


def _in_words(error: BaseException) -> str:
    """Its first line; its type too, where that is all it says, as of a time-out."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
