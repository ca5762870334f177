"""Dialects with typed events: how to build a request's body, and how to read an answer's event.

Completions, chat and TGI send token chunks without a type, which `wire` reads.
"""

from sweep.client.dialects.event import TypedDialect
from sweep.client.dialects.messages import MESSAGES
from sweep.client.dialects.responses import RESPONSES

TYPED_DIALECTS: dict[str, TypedDialect] = {"responses": RESPONSES, "messages": MESSAGES}
