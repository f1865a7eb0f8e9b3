"""Configs: what a model says it is, before a weight is read."""

from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

from workbench.errors import ModelError
from workbench.models.foreign import first_line
from workbench.models.sources import Source, hub_advice


def read_config(source: Source) -> Any:
    """The config of a causal language model, through the class of its model type; no code of the model's own is run.

    Raises:
        ModelError: there is none, it cannot be read, or it is of no causal language model.
    """
    if source.kind == "folder" and not (Path(source.folder) / "config.json").is_file():
        raise ModelError(
            f"{source.folder} has no config.json, so it is no model folder; give the folder that holds it."
        )
    try:
        config = AutoConfig.from_pretrained(source.folder, revision=source.hub_revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{source.name} brings code of its own (auto_map in its config.json), which is never run here: what it "
                "computes cannot be proved, and it can do anything to this machine. Use a model type that transformers "
                "itself has."
            ) from error
        raise ModelError(
            f"{source.name}: the config cannot be read ({first_line(error)}). "
            + (
                f"If the name is right, {hub_advice()}, or give a local folder."
                if source.kind == "hub"
                else "Mend config.json or save the model again."
            )
        ) from error
    if config.is_encoder_decoder:
        raise ModelError(
            f"{source.name} ({config.model_type}) is an encoder-decoder model: its decoder reads an encoder's "
            "output, so a recording of one text would not say what was fed to it. Only causal models are recorded."
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"{source.name}: transformers has no causal language model of type {config.model_type!r}. Give one "
            "that AutoModelForCausalLM loads."
        )
    return config


def on_meta(config: Any) -> Any:
    """A model of a config without weights: its modules and their shapes."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
