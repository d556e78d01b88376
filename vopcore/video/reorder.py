"""The order in which MPEG-4 pictures are shown, read from their headers.

AVI gives pictures the times at which they are decoded. Where some of them (B) refer to later ones, they are
shown in another order, which only the pictures' types tell (ISO/IEC 14496-2, 6.2.5).
"""

from array import array

import numpy as np

VOP_START = b"\x00\x00\x01\xb6"  # a picture; the two bits after it are its type
MAX_PLACEHOLDER = 19  # bytes of a packet that only says "the picture came with the packet before"

BIDIRECTIONAL = 2
UNKNOWN = 255


class PictureTypes:
    """Collects the type of each packet's picture, in decoding order."""

    def __init__(self) -> None:
        self._types = array("B")
        # DivX packs a picture and the B picture after it into one packet and sends a placeholder next.
        self._packed_type: int | None = None

    def add(self, data: bytes) -> None:
        starts = _vop_types(data)
        if self._packed_type is not None:
            is_placeholder = len(starts) == 1 and len(data) <= MAX_PLACEHOLDER
            self._types.append(self._packed_type if is_placeholder else UNKNOWN)
            self._packed_type = None
            return

        if len(starts) == 2:
            self._packed_type = starts[1]
        if len(starts) in (1, 2):
            self._types.append(starts[0])
        else:
            self._types.append(UNKNOWN)

    def ranks(self) -> np.ndarray | None:
        """For each packet, how many pictures are shown before its own; None where a type is not known.

        B pictures are shown at once, any other when the next of its kind is decoded.
        """
        if not self._types or UNKNOWN in self._types:
            return None
        shown: list[int] = []
        held_back: int | None = None
        for position, kind in enumerate(self._types):
            if kind == BIDIRECTIONAL:
                shown.append(position)
                continue
            if held_back is not None:
                shown.append(held_back)
            held_back = position
        if held_back is not None:
            shown.append(held_back)

        ranks = np.empty(len(shown), np.int64)
        ranks[shown] = np.arange(len(shown))
        return ranks


def _vop_types(data: bytes) -> list[int]:
    """The types of the pictures that start in a packet."""
    types = []
    place = data.find(VOP_START)
    while 0 <= place < len(data) - len(VOP_START):
        types.append(data[place + len(VOP_START)] >> 6)
        place = data.find(VOP_START, place + len(VOP_START))
    return types
