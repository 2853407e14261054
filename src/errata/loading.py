"""Loading: from a model's name to the model and its tokenizer. Remote code is never run.

A name is `atlas` (the model that comes with errata), a local directory, or the name of a model on the Hugging Face Hub.
"""

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from errata.edit import Probe
from errata.errors import BadOption, DamagedFile, MissingExtra, UnknownName, UsageError
from errata.room import room_for, smaller_model

ATLAS = "atlas"
SMALL = 1_000_000_000
"""Parameters below which a 16-bit model is computed in float32 on a CPU."""
HINT = "Give atlas, a directory with a saved model, or the name of a model on the Hugging Face Hub."
DTYPES = ("auto", "float32", "bfloat16", "float16")


def load(
    name: str,
    *,
    dtype: str = "auto",
    device: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    tp_plan: str | dict[str, str] | None = None,
) -> tuple[nn.Module, Any]:
    """The model called `name`, in evaluation mode, and its tokenizer.

    `dtype` is that of the checkpoint by default; `device` is the first GPU, or else the CPU. A model that is too large for
    one is laid over all GPUs, the CPU and the disk by `device_map`, as transformers has it ("auto", or module by module),
    or is split over the processes of `torchrun` by `tp_plan="auto"`; `device="auto"` is `device_map="auto"`. Raises
    `UnknownName` for a model that is not found, `DamagedFile` for weights that cannot be read, `UsageError` for a
    directory without a part, `MissingExtra` for a device map without accelerate, `OutOfMemory`.
    """
    if dtype not in DTYPES:
        raise BadOption(f"dtype {dtype!r}: {', '.join(DTYPES)}")
    if device == "auto":
        device, device_map = None, device_map or "auto"
    layout = _layout(device, device_map, tp_plan)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    source = locate(name)
    with quiet(), room_for(name, lambda: smaller_model(half=dtype in DTYPES[2:])):
        tokenizer = _tokenizer(name, source)
        model = _model(name, source, dtype, layout)
        if not layout:
            model.to(place)
    if dtype == "auto" and place.type == "cpu" and device_map is None and _is_small_and_half(model):
        # 16-bit matrix products on a CPU are slow, and too coarse for the inner optimisation of an edit. The values of
        # the weights stay what the checkpoint says; only the arithmetic is finer.
        model.float()
        model.config.dtype = torch.float32
    # What `EditedModel` records as the name of its base: the name, where a path would only hold on this machine.
    model.config._name_or_path = ATLAS if name == ATLAS else source
    return model.eval(), tokenizer


def outline(name: str) -> nn.Module:
    """The modules of a model without its weights (on `meta`), whatever its size."""
    from transformers import AutoConfig, AutoModelForCausalLM

    source = locate(name)
    try:
        with quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(source, local_files_only=_offline(), trust_remote_code=False)
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise _unloadable(name, source, error) from error


def locate(name: str) -> str:
    """Where a model is: a directory, or the name itself for the Hub. Raises `UnknownName` for what can be neither."""
    if name == ATLAS:
        from errata import atlas

        embedded = Path(atlas.model_path())
        if not (embedded / "config.json").is_file():
            raise UsageError(f"this installation of errata lacks the atlas model ({embedded}); install errata again")
        return str(embedded)
    path = Path(name).expanduser()
    if name and path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(f"{name} is a directory without a config.json, so it holds no model")
        return str(path.resolve())
    if name and path.exists():
        raise UsageError(f"{name} is a file; give the directory that holds the model")
    if not _may_be_on_hub(name):
        raise UnknownName("model", name, {ATLAS}, f"There is no such directory. {HINT}")
    return name


def irrelevant(name: str) -> tuple[Probe, ...]:
    """The prompts that come with a model and stand for what its edits must leave alone; none for most models."""
    if name != ATLAS:
        return ()
    from errata import atlas

    return tuple(atlas.irrelevant())


def _layout(device: str | None, device_map: Any, tp_plan: Any) -> dict[str, Any]:
    """What `from_pretrained` is told of where the weights go, where that is more than one device."""
    if sum(value is not None for value in (device, device_map, tp_plan)) > 1:
        raise BadOption("device, device_map and tp_plan exclude one another; give one of them")
    if device_map is not None:
        if find_spec("accelerate") is None:
            raise MissingExtra("accelerate", "large", "device_map")
        return {"device_map": device_map}
    if tp_plan is None:
        return {}
    if not (torch.distributed.is_available() and (torch.distributed.is_initialized() or "WORLD_SIZE" in os.environ)):
        raise BadOption(
            "tp_plan splits a model over processes; start them with torchrun --nproc-per-node N, or give device_map"
        )
    from transformers.distributed.configuration_utils import DistributedConfig

    if "tp_plan" in inspect.signature(DistributedConfig).parameters:
        return {"distributed_config": DistributedConfig(tp_plan=tp_plan)}
    return {"tp_plan": tp_plan}  # transformers before 5.16


@contextmanager
def quiet() -> Iterator[None]:
    """Scope: transformers shows no progress bars and no warnings; what goes wrong is told by our own errors."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _may_be_on_hub(name: str) -> bool:
    _, slash, rest = name.partition("/")
    return bool(name.strip()) and "/" not in rest and not name.startswith((".", "/", "~")) and bool(rest) == bool(slash)


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


def _tokenizer(name: str, source: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, local_files_only=_offline(), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        if isinstance(error, OSError) and not Path(source).is_dir():
            raise _not_found(name) from error
        raise UsageError(f"{name} holds no tokenizer that can be read ({_first_line(error)})") from error


def _model(name: str, source: str, dtype: str, layout: dict[str, Any]) -> Any:
    from pickle import UnpicklingError

    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    kind = dtype if dtype == "auto" else getattr(torch, dtype)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=kind, local_files_only=_offline(), trust_remote_code=False, output_loading_info=True, **layout
        )
        model, info = loaded
    except (SafetensorError, RuntimeError, EOFError, UnpicklingError) as error:
        raise DamagedFile(f"the weights of {name} cannot be read: {_first_line(error)}; copy them again") from error
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise _unloadable(name, source, error) from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise DamagedFile(f"the weights of {name} are incomplete: {len(missing)} are missing, the first {missing[0]!r}")
    return model


def _unloadable(name: str, source: str, error: BaseException) -> UsageError:
    if isinstance(error, OSError) and not Path(source).is_dir():
        return _not_found(name)
    return UsageError(f"{name} is no causal language model that can be loaded: {_first_line(error)}")


def _not_found(name: str) -> UnknownName:
    where = "in the cache (HF_HUB_OFFLINE is set)" if _offline() else "on the Hugging Face Hub"
    return UnknownName("model", name, {ATLAS}, f"It is no directory, and it was not found {where}. {HINT}")


def _is_small_and_half(model: nn.Module) -> bool:
    parameters = list(model.parameters())
    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in parameters)
    return half and sum(p.numel() for p in parameters) < SMALL


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
