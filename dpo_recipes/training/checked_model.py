"""What is wrong with the models of a session, seen before a weight is read: from folders, then from configurations."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..data.sources import is_path
from ..models.model_folder import refuse_adapter_folder, refuse_model_folder
from .options import require_device

if TYPE_CHECKING:
    from .session import Session


def refuse_unusable_folders(session: Session) -> None:
    """Folders that no library could load, before the libraries are imported."""
    if os.path.isdir(session.model_path):
        refuse_model_folder(session.model_path, "model")
    if os.path.isdir(session.reference_path):
        refuse_model_folder(session.reference_path, "reference", tokenizer=False)
    if session.reference_adapter:
        refuse_adapter_folder(session.reference_adapter, "reference")

    adapter = session.recipe.adapter
    if adapter is not None and adapter.continue_from:
        folder = os.path.expanduser(adapter.continue_from)
        if is_path(adapter.continue_from) or os.path.exists(folder):
            refuse_adapter_folder(folder, "adapter.continue_from")


def check_model(session: Session, here: bool) -> None:
    """See `Session.check_model`."""
    from ..models import checkpoint, limits
    from ..models.adapter import refuse_unfit_adapter_file
    from ..models.skeleton import skeleton, with_adapter_of
    from ..models.tokenizer import need_embeddings, need_same_tokens

    recipe, tokenizer = session.recipe, session.tokenizer.tokenizer
    if here:
        require_device(recipe.trl)
        limits.refuse_absent_attention(recipe.attn_implementation)
    models = {session.model_path: "the model"}
    if session.reference_path:
        models.setdefault(session.reference_path, "the reference")
        need_same_tokens(tokenizer, session.reference_path, recipe.trust_remote_code)

    for path, who in models.items():
        model = skeleton(recipe, session.settings, path, trainable=path == session.model_path)
        if path == session.model_path and recipe.adapter is not None and recipe.adapter.continue_from:
            refuse_unfit_adapter_file(model, os.path.expanduser(recipe.adapter.continue_from))
        limits.refuse_encoder(model.config, path)
        if path == session.model_path:
            limits.refuse_absent_router(recipe.trl, model.config, path)
        need_embeddings(model, tokenizer, who)
        if recipe.max_length:
            limits.refuse_longer_pairs(recipe.max_length, f"max_length={recipe.max_length}", model.config, path)
        if os.path.isdir(path):
            checkpoint.refuse_unfit_files(path, trust_remote_code=recipe.trust_remote_code)
    if session.reference_adapter:
        model = skeleton(recipe, session.settings, session.reference_path, trainable=False)
        refuse_unfit_adapter_file(with_adapter_of(model, session.reference_adapter), session.reference_adapter)
