"""The order in which MPEG-4 pictures are shown, read from their headers.

AVI gives pictures the times at which they are decoded. Where some of them (B) refer to later ones, they are
shown in another order, which only the pictures' types tell (ISO/IEC 14496-2, 6.2.5).
"""

from array import array

import numpy as np

# A picture begins; the two bits after this are its type.
VOP_START = b"\x00\x00\x01\xb6"

# Bytes of a packet that only says "the picture came with the packet before".
MAX_PLACEHOLDER = 19

BIDIRECTIONAL = 2
UNKNOWN = 255


class PictureTypes:
    """Collects the type of each packet's picture, in decoding order."""

    def __init__(self) -> None:
        self._types = array("B")

        # DivX packs a picture and the B picture after it into one packet and sends a placeholder next.
        self._packed_type: int | None = None

    def add(self, data: bytes) -> None:
        """Note the type of the next packet's picture."""
        picture_types = _vop_types(data)
        num_pictures = len(picture_types)

        if self._packed_type is not None:
            is_placeholder = num_pictures == 1 and len(data) <= MAX_PLACEHOLDER
            picture_type = self._packed_type if is_placeholder else UNKNOWN
            self._types.append(picture_type)
            self._packed_type = None
            return

        if num_pictures == 2:
            self._packed_type = picture_types[1]

        # With no picture, or with more than two, the packet is of no known kind.
        if num_pictures in (1, 2):
            self._types.append(picture_types[0])
        else:
            self._types.append(UNKNOWN)

    def ranks(self) -> np.ndarray | None:
        """For each packet, how many pictures are shown before its own; None where a type is not known.

        B pictures are shown at once, any other when the next of its kind is decoded.
        """
        if not self._types or UNKNOWN in self._types:
            return None

        # Positions of the packets, in the order their pictures are shown.
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

        # The inverse of that order: position to rank.
        num_shown = len(shown)
        ranks = np.empty(num_shown, np.int64)
        ranks[shown] = np.arange(num_shown)
        return ranks


def _vop_types(data: bytes) -> list[int]:
    """The types of the pictures that start in a packet."""
    types = []
    start = data.find(VOP_START)
    last_start = len(data) - len(VOP_START) - 1

    while 0 <= start <= last_start:
        after_start = start + len(VOP_START)
        header = data[after_start]
        types.append(header >> 6)
        start = data.find(VOP_START, after_start)

    return types
