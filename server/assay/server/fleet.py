"""Flower's fleet inside the coordinator: node registry, message store, `Grid`, and their TLS listener.

Everything of flwr that is not public API is used here and in ``assay.client.fleet`` only. What is used:
the Fleet protobuf messages, node authentication, ``LinkState`` in memory, ``Grid`` and ``Message``.

Left out on purpose: Flower's FastAPI application, whose Control and Runtime calls would share the public
port, and its object store. A message travels whole, in the ``content`` field Flower's protocol has for
it, so a question costs two requests instead of ten and a reply is never half there.

Nothing here needs to survive the process: a restarted coordinator admits its roster again, holders
activate by themselves, and what was asked is asked again (a holder's answers are idempotent).
"""

from __future__ import annotations

import asyncio
import datetime
import functools
import logging
import math
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from assay.privacy.errors import BadInput, Unavailable
from assay.privacy.transport import public_pem
from assay.server.gate import Denied, Gate, PeerProtocol

# Before flwr is imported: it reads these once.
os.environ.update(
    FLWR_TELEMETRY_ENABLED="0",
    FLWR_DISABLE_UPDATE_CHECK="1",
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
)
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import (
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    SUPERLINK_NODE_ID,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_TOLERANCE,
    ErrorCode,
    SubStatus,
)
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import ObjectTree
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.server.superlink.linkstate.utils import create_message_error_unavailable_ins_message
from flwr.serverapp import Grid
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.primitives.asymmetric import verify_signature
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager

__all__ = ["FleetGrid", "FleetServer", "NamedGrid", "exchange"]

HEARTBEAT_S = 30.0
DELIVERIES = 3
HANDSHAKE_S = 10.0
