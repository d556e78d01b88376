"""Videos in: which frames (`sample`), what must be decoded for them (`plan`), and the frames themselves
(`decode`).
"""

from vopcore.video.decode import DECODER_VERSION, Decoded, decode
from vopcore.video.sample import SAMPLERS, choose
from vopcore.video.source import VideoError
from vopcore.video.stack import stack

__all__ = ["DECODER_VERSION", "SAMPLERS", "Decoded", "VideoError", "choose", "decode", "stack"]
