"""Facts that the kernel states about the process behind a socket.

`credentials` reads SO_PEERCRED and SO_PEERGROUPS. `caller` reads SO_PEERPIDFD and names the caller
of a connection. `process` holds the pidfd, asks it whether the process is alive, and reads
`/proc/PID`. `fingerprint` detects a process that changed. `sender` checks the SCM_CREDENTIALS of
each chunk. `account` names the user and cgroup that a quota counts against. `inspect` shows a
process to an operator. This room imports no other room.
"""
