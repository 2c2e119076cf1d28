"""Before the head's pod ends: ask the jobs on it to stop, and wait while they write their checkpoints.

Kubernetes sends SIGTERM to the first process of a container only, which is Ray's: jobs would be killed without warning.
"""

import sys
import time

from ray.job_submission import JobSubmissionClient

CHECK_S = 0.2
"""How often the jobs are looked at, in seconds."""


def running(client: JobSubmissionClient) -> list[str]:
    """Return the submitted jobs that have not ended."""
    return [job.submission_id for job in client.list_jobs() if job.submission_id and not job.status.is_terminal()]


def stop_all(address: str) -> None:
    """Stop the jobs of the cluster whose dashboard is at an address; returns when they have ended."""
    client = JobSubmissionClient(address)
    for job in running(client):
        client.stop_job(job)
    while running(client):
        time.sleep(CHECK_S)


if __name__ == "__main__":
    stop_all(sys.argv[1])
