"""Starting a run of W&B: whether it is sent, names that it takes, and a server that may be absent."""

from __future__ import annotations

import os
import re
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lit_xai.rng import stable_hash

TAG, NAME = 64, 128  # most characters that the server takes
SENT = ("online", "shared", "run")  # modes that need a server
PATIENCE = 5.0  # seconds that a server may take to answer
STAGED = "WANDB_DATA_DIR"  # where files of artifacts wait until they are sent
OWN_PLACE = STAGED not in os.environ


def wandb_mode(mode: str) -> str:
    """`auto`: online if the user is logged in or WANDB_MODE says so, else offline. Never a prompt."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    known = netrc.is_file() and "wandb" in netrc.read_text(errors="ignore")
    return "online" if os.environ.get("WANDB_API_KEY") or known else "offline"


def cleaned(text: str, most: int = NAME, without: str = "") -> str:
    """A name that W&B takes: printable, none of the characters `without`, at most so many; two long ones stay different."""
    plain = "".join(c if c.isprintable() and c not in without else "-" for c in text).strip() or "unnamed"
    return plain if len(plain) <= most else f"{plain[: most - 9]}-{stable_hash(text):016x}"[:most]


def project_name(text: str) -> str:
    r"""A project: without `/\#?%:`."""
    return cleaned(text, without="/\\#?%:")


def artifact_name(*parts: str) -> str:
    """An artifact: letters, digits, `_`, `-` and `.`; two texts that differ elsewhere alone stay different."""
    text = "-".join(parts)
    plain = re.sub(r"[^A-Za-z0-9_.-]", "-", text.replace("fold=", "fold-"))
    return cleaned(plain if plain == text.replace("fold=", "fold-") else f"{plain}-{stable_hash(text):016x}"[:NAME])


def tags_of(texts: Iterable[str]) -> list[str]:
    """Tags without empty ones and repetitions."""
    return list(dict.fromkeys(cleaned(t, TAG) for t in texts if t.strip()))


def unreachable(url: str, patience: float = PATIENCE) -> str:
    """Why nothing at all answers there, through the proxy that the environment names; empty if something does."""
    found = [f"no answer within {patience:g} s"]

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=patience).close()
            found[0] = ""
        except urllib.error.HTTPError:  # an answer
            found[0] = ""
        except (OSError, ValueError) as e:
            reason = e.reason if isinstance(e, urllib.error.URLError) else e
            if isinstance(reason, ssl.SSLError):  # whose certificate W&B may know
                found[0] = ""
            elif not isinstance(reason, socket.timeout):
                found[0] = str(reason)

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name knows no time limit
    asking.start()
    asking.join(patience)
    return found[0]


def start(mode: str, options: Mapping[str, Any]) -> Any:
    """`wandb.init`; where its server does not answer, or refuses, a line says so and the run is kept offline."""
    import wandb

    if OWN_PLACE:  # beside the run, which can be moved and sent from elsewhere, and not at the user's home
        os.environ[STAGED] = str(Path(options["dir"]).resolve() / "wandb")
    settings = wandb.Settings(silent=True, console="off")
    if mode in SENT:
        url = wandb.setup().settings.base_url
        why = unreachable(url)
        if not why:
            try:
                return wandb.init(**options, mode=mode, resume="allow", settings=settings)  # type: ignore[arg-type]
            except wandb.errors.Error as e:
                why = (str(e).splitlines() or [type(e).__name__])[0]
                wandb.teardown()  # it holds the id of the run that did not begin
        print(f"W&B: {url} cannot be used ({why}): this run is kept offline", flush=True)
        mode = "offline"
    return wandb.init(**options, mode=mode, settings=settings)  # type: ignore[arg-type]
