"""Facts that the kernel states about the process behind a socket.

`credentials` reads SO_PEERCRED and SO_PEERGROUPS, `caller` reads SO_PEERPIDFD, `process` holds the
pidfd, `fingerprint` compares a process with itself, `sender` checks SCM_CREDENTIALS. This room
imports no other; every room may import it.
"""
