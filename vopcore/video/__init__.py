"""Videos in: which frames (`sample`), what must be decoded for them (`plan`), and the frames themselves
(`decode`).
"""

from vopcore.video.decode import DECODER_VERSION, Decoded, decode, decode_moments
from vopcore.video.preprocess import Interpolation, Resize
from vopcore.video.sample import SAMPLERS, choose
from vopcore.video.source import TIME_LIMIT, VideoError, check_ordinary, probe
from vopcore.video.stack import stack

__all__ = [
    "DECODER_VERSION",
    "SAMPLERS",
    "TIME_LIMIT",
    "Decoded",
    "Interpolation",
    "Resize",
    "VideoError",
    "check_ordinary",
    "choose",
    "decode",
    "decode_moments",
    "probe",
    "stack",
]
