"""What an export can be told, for a command line that answers before torch is loaded."""

FORMATS = ("diffusers", "ldm", "comfyui")
DTYPES = ("fp32", "fp16", "bf16")
