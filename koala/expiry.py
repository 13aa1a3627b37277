"""What is noted of a job's images so that they go when the job does."""

import re
from dataclasses import dataclass
from typing import Final, cast

from koala.spec import JobSpec, OutputFormat, image_name

_MEMBER: Final = re.compile(rb"([0-9a-f]{32}) ([1-9]|10) (png|jpeg|webp)")


@dataclass(frozen=True, slots=True)
class ExpiringImages:
    """The images of one job, as a member of the sorted set of images by expiry."""

    images_id: str
    n: int
    output_format: OutputFormat

    @classmethod
    def of(cls, spec: JobSpec) -> "ExpiringImages":
        """The images that a job stores."""
        return cls(spec.images_id, spec.n, spec.output_format)

    @property
    def names(self) -> list[str]:
        """Their names in the image store."""
        return [image_name(self.images_id, i, self.output_format) for i in range(self.n)]

    def encode(self) -> str:
        """The member."""
        return f"{self.images_id} {self.n} {self.output_format}"

    @classmethod
    def decode(cls, member: bytes) -> "ExpiringImages":
        """The images that a member stands for.

        Raises:
            ValueError: It is none.
        """
        found = _MEMBER.fullmatch(member)
        if found is None:
            raise ValueError(f"{member[:80]!r} is no job's images")
        images_id, n, output_format = (part.decode() for part in found.groups())
        return cls(images_id, int(n), cast(OutputFormat, output_format))

    @staticmethod
    def id_in(member: bytes) -> str:
        """The images' id in a member, of which a newer version may have noted more."""
        return member.partition(b" ")[0].decode(errors="replace")
