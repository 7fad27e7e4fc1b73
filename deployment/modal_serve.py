"""The API on a GPU of Modal: from a model folder to an address that answers, with one command.

    modal volume put scratchbook-models runs/demo/instruct/model demo/instruct/model
    modal deploy deployment/modal_serve.py

The server is `deployment/api.py`, unchanged. A container loads the weights once, answers many clients at a time, and is
gone two minutes after the last of them; until then, and for no longer, its GPU is paid for. Two locks are on the door:
Modal's own (proxy authentication) and the API's keys. README.md in this folder begins at an empty account.

Settings are environment variables of the command: SCRATCHBOOK_MODEL=gpt2 SCRATCHBOOK_GPU=L40S modal deploy ...
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import httpx
import modal
from openai import OpenAI

from deployment.modal_common import (
    gpu_setting,
    name_of,
    proxy_token,
    python_image,
    refuse,
    setting,
    settings,
    whole,
    with_repository,
)

APP = name_of("SCRATCHBOOK_APP", "scratchbook-serve")
GPU = gpu_setting("L4")
MODELS = "/models"  # where the Volume is mounted
MODEL = setting("SCRATCHBOOK_MODEL", "demo/instruct/model")  # a folder on it, or a name on the hub
VOLUME = name_of("SCRATCHBOOK_MODELS_VOLUME", "scratchbook-models")
SECRET = name_of("SCRATCHBOOK_API_SECRET", "scratchbook-api")
AT_ONCE = whole("SCRATCHBOOK_AT_ONCE", 32)  # answers that a container writes side by side
WAITING = whole("SCRATCHBOOK_WAITING", 32, least=0)  # and that may wait in it beside those
MAX_TOKENS = whole("SCRATCHBOOK_MAX_TOKENS", 1024)  # of an answer
MOST = whole("SCRATCHBOOK_MAX_CONTAINERS", 2)
IDLE_SECONDS = whole("SCRATCHBOOK_IDLE_SECONDS", 120, least=2, most=3600)
PROXY_AUTH = setting("SCRATCHBOOK_PROXY_AUTH", "on")
if PROXY_AUTH not in ("on", "off"):
    refuse(f"SCRATCHBOOK_PROXY_AUTH is on or off, got {PROXY_AUTH!r}")

app = modal.App(APP)


@app.cls(
    image=with_repository(python_image()),
    gpu=GPU,
    volumes={MODELS: modal.Volume.from_name(VOLUME, create_if_missing=True).with_mount_options(read_only=True)},
    secrets=[modal.Secret.from_name(SECRET, required_keys=["SCRATCHBOOK_API_KEYS"])],
    env=settings(),
    min_containers=0,
    max_containers=MOST,
    scaledown_window=IDLE_SECONDS,
    startup_timeout=600,
    timeout=600,  # seconds for one answer
)
@modal.concurrent(max_inputs=AT_ONCE + WAITING, target_inputs=AT_ONCE)  # a new container beyond the target
class Api:
    """A container of the API."""

    @modal.enter()
    def load(self) -> None:
        """Loads the model and lets it write some tokens, so that the first client does not wait for the GPU's."""
        from chat_ui.chat_engine import Wish
        from deployment.api import Limits, Serve, create_app, keys_from_environment, load_engines
        from utils.errors import UserError

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        keys = keys_from_environment()
        if not keys:
            raise UserError(f"the Secret {SECRET} holds no key: see deployment/README.md")
        folder = Path(MODELS, MODEL)
        model, name = (str(folder), MODEL.removesuffix("/model")) if folder.is_dir() else (MODEL, MODEL)
        engines = load_engines(Serve(model=(model,), name=(name,), rows=AT_ONCE, max_waiting=WAITING))
        for engine in engines.values():
            start = engine.prompt_of_ids([engine.tokenizer.eot_token])
            list(engine.write(start, Wish(max_new_tokens=8)))
        self.server = create_app(engines, keys, Limits(max_tokens=MAX_TOKENS))

    @modal.asgi_app(requires_proxy_auth=PROXY_AUTH == "on")
    def web(self) -> Any:
        """What Modal puts behind an address."""
        return self.server


def smoke_test(url: str, key: str, proxy: dict[str, str]) -> str:
    """Asks a running API for what it should give, and without a key for what it should not.

    Args:
        proxy: the headers that Modal's own door asks for.

    Returns:
        What its model answered.

    Raises:
        SystemExit: something is not as it should be; one line.
    """
    open_door = httpx.get(f"{url}/v1/models", headers=proxy, timeout=600)  # a cold start takes its time
    if open_door.status_code != 401:
        refuse(f"{url}/v1/models answers {open_door.status_code} to a client without a key, not 401")
    if proxy and httpx.get(f"{url}/health", timeout=60).status_code != 401:
        refuse(f"{url} lets in who has no token for Modal's proxy")
    client = OpenAI(base_url=f"{url}/v1", api_key=key, default_headers=proxy, timeout=600)
    model = client.models.list().data[0]
    print(f"{model.id} is there")
    if (model.model_extra or {}).get("answers"):
        asked = [{"role": "user", "content": "What does len do?"}]
        ask: Any = client.chat.completions.create
        stream = ask(model=model.id, messages=asked, max_tokens=32, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    return client.completions.create(model=model.id, prompt="The", max_tokens=32).choices[0].text


@app.local_entrypoint()
def main(url: str = "") -> None:
    """`modal run deployment/modal_serve.py` tries the API: a container of its own, or the one at --url.

    SCRATCHBOOK_API_KEY is a key that the Secret holds; MODAL_PROXY_KEY and MODAL_PROXY_SECRET open Modal's own door.
    """
    key, proxy = os.environ.get("SCRATCHBOOK_API_KEY", ""), proxy_token() if PROXY_AUTH == "on" else {}
    if not key:
        refuse("set SCRATCHBOOK_API_KEY to a key that the Secret holds")
    if PROXY_AUTH == "on" and not proxy:
        refuse("set MODAL_PROXY_KEY and MODAL_PROXY_SECRET: a proxy auth token, from modal.com/settings")
    where = url.rstrip("/") or str(Api().web.get_web_url())
    print(f"Asking {where}")
    print(f"It answers: {smoke_test(where, key, proxy)!r}")
