"""Outages: failures of network, hub, disk or machine, which may pass, as opposed to answers, which stay the same."""

import errno
import re

OUTAGE_ERRORS = {
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EIO,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENOTCONN,
    errno.EREMOTEIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # no outage: nothing more is started on that node
OUTAGE_WORDS = re.compile(
    r"connection (was )?(re(set|fused)|aborted|closed|broken|timed out)|broken pipe|error sending request|dns error"
    r"|(temporary failure in|failed to resolve|error in) name resolution|name or service not known|no route to host"
    r"|(network|host|hub|registry) (is unreachable|cannot be reached)|(operation|read|request|connect) timed out"
    r"|remote end closed|incomplete ?read|bad gateway|service unavailable|gateway time-?out"
    r"|too many requests|could(n't| not) (connect to server|resolve host)"
    r"|(status|error)( code)?:? ?(429|50[0234])\b|stale (nfs )?file handle|input/output error"
    r"|no space left|disk quota exceeded|transport endpoint is not connected|killed by (signal|sig)"
    r"|supervisor was killed|signal 9\b|accepts no connections",
    re.IGNORECASE,
)


class Outage(ValueError):
    """A network, a hub or a disk failed before it gave an answer: another try may succeed."""


def is_outage(error: BaseException | str) -> bool:
    """Return whether an error, or the words of one, tell of an outage and not of an answer."""
    if isinstance(error, Outage):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in OUTAGE_ERRORS
    return OUTAGE_WORDS.search(str(error)) is not None
