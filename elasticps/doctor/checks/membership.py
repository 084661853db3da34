"""Is there a leader, does every node answer, and has every job the copies that it asked for?"""

from __future__ import annotations

from elasticps.doctor.finding import Finding, fault, ok, unchecked, warning
from elasticps.doctor.seen import JobSeen, Seen

RESTARTS = 3


def nodes(seen: Seen) -> list[Finding]:
    findings = []
    if seen.leader is None:
        fix = "a minute at most after a leader's death; then: can the daemons write to etcd?"
        findings.append(fault("no daemon leads", fix=fix))
    for member in seen.members:
        if not member.reachable:
            fix = "`systemctl status elasticpsd` there, and the firewall between"
            findings.append(fault(f"{member.name} does not answer", fix=fix))
        elif member.restarts >= RESTARTS:
            saw = f"children of {member.name} were started again {member.restarts} times"
            fix = "shard-server.log in its log_dir says why they end"
            findings.append(warning(saw, fix=fix))
    if not findings:
        findings.append(ok(_answer(len(seen.members), seen.leader)))
    return findings


def _answer(nodes: int, leader: str | None) -> str:
    answer = "1 node answers" if nodes == 1 else f"{nodes} nodes answer"
    return f"{answer}, {leader} leads"


def jobs(seen: Seen) -> list[Finding]:
    found = [each for job in seen.jobs for each in _job(job, len(seen.members))]
    if found:
        return found
    if not seen.jobs:
        return [unchecked("no job runs")]
    return [ok(f"{len(seen.jobs)} run, all copies are there")]


def _job(job: JobSeen, nodes: int) -> list[Finding]:
    findings = []
    if job.lost or job.duplicated:
        saw = f"{job.name}: {job.lost} pushes lost, {job.duplicated} doubled"
        fix = "a promise is broken: keep all logs, and report it"
        findings.append(fault(saw, fix=fix))
    if job.under_replicated and nodes < job.replicas:
        saw = f"{job.name}: {job.replicas} copies are wanted of each block, {nodes} nodes are there"
        fix = "add a node: one that dies now may take the job with it"
        findings.append(warning(saw, fix=fix))
    elif job.under_replicated:
        saw = (
            f"{job.name}: {job.under_replicated} blocks lack copies, {job.pending_moves} on the way"
        )
        fix = "wait until they are there, and take no node away; `elasticps status`"
        findings.append(warning(saw, fix=fix))
    if job.failed_checkpoints:
        saw = f"{job.name}: {job.failed_checkpoints} checkpoints failed"
        fix = "`elasticps status` has the newest reason: a full disk, a folder that is not there"
        findings.append(warning(saw, fix=fix))
    return findings
