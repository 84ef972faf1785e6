"""Which replica of a strategy a step runs on."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def replica_index() -> Any:
    """Its number, an integer or a tensor; `None` where there is one alone."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return None
    return context.replica_id_in_sync_group
