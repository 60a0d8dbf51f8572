"""What an export can be told, for a command line that answers before torch is loaded."""

FORMATS = ("diffusers", "ldm", "comfyui")
FAMILIES = ("sd1", "sdxl", "sd3", "flux")  # the names in latentae/models/checkpoints/families.py
DTYPES = ("fp32", "fp16", "bf16")
