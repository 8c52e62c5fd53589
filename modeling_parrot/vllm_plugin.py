"""
vLLM's plugin, found by the entry point `vllm.general_plugins` wherever vLLM and this package are installed.

    vllm serve DIR_OR_ID
"""


def register() -> None:
    """Tells vLLM which class serves a Parrot. vLLM calls it in each of its processes, possibly more than once."""
    from vllm import ModelRegistry

    import modeling_parrot  # noqa: F401 (registers configuration, model and processor with the Auto classes)

    # By name, so that vLLM chooses its device before anything of the model is imported.
    ModelRegistry.register_model("ParrotForConditionalGeneration", "modeling_parrot.vllm_model:ParrotForVLLM")
