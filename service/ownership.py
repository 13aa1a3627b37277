"""Whose jobs and images are whose: what belongs to others does not exist."""

from koala.errors import ImageNotFound, JobNotFound, JobUnreadable
from koala.queue import JOB_ID
from koala.spec import JobRecord, is_owners_image
from koala.store import IMAGE_NAME
from service.auth import Principal
from service.gateway import Gateway


async def own_job(gateway: Gateway, principal: Principal, job_id: str) -> JobRecord:
    """A job that ``principal`` sees, as it stands now.

    Raises:
        JobNotFound: There is no such job, it has expired, or it is another owner's: nothing tells
            these apart.
        JobUnreadable: What is stored of it is of another version, or damaged.
    """
    if not JOB_ID.fullmatch(job_id):
        # RQ keeps other things under names like a job's; they are nobody's business.
        raise _no_job(job_id)
    try:
        record = await gateway.queue.get(job_id)
    except JobUnreadable as error:
        if principal.sees is not None and principal.sees != error.owner:
            raise _no_job(job_id) from None
        raise
    if principal.sees is not None and principal.sees != record.spec.owner:
        raise _no_job(job_id)
    return record


def check_own_image(principal: Principal, name: str) -> None:
    """Make sure that ``principal`` may see the image ``name``, if there is one.

    Raises:
        ImageNotFound: It is another owner's.
    """
    if principal.sees is None or not IMAGE_NAME.fullmatch(name):
        return
    if not is_owners_image(name, principal.sees):
        # In the store's own words.
        raise ImageNotFound(
            f"There is no image {name[:80]!r}: it never was, or it has expired.", param="name"
        )


def _no_job(job_id: str) -> JobNotFound:
    # In the queue's own words.
    return JobNotFound(
        f"There is no job {job_id[:80]!r}: it never was, or it has expired.", param="id"
    )
