"""Settings that a model refuses; the error names the setting, its value and what goes with it."""

import pytest
from torch import nn

from fuxictr_mm.errors import ConfigError
from fuxictr_mm.layers import HSTULayer
from tests.errors import raises_naming

REFUSED = [
    ("BST", {"num_heads": 7}, ["num_heads is 7"]),
    ("DHEN", {"interactions": []}, ["interactions"]),
    ("DHEN", {"interactions": ["dots"]}, ["interactions", "dots"]),
    ("DHEN", {"interactions": ["dot", "linear", "dot"]}, ["interactions", "dot"]),
    ("DIN_CrossAttention", {"num_layers": 0}, ["num_layers is 0"]),
    ("DIN_CrossAttention", {"num_heads": 7}, ["num_heads is 7", "80"]),
    ("DIN_MM", {"num_heads": 5}, ["num_heads is 5", "attention_dim 64", "num_heads: 4"]),
    ("DIN_MM", {"cross": "v3"}, ["cross is 'v3'", "'v1', 'v2', 'mix'"]),
    ("DMF", {"content": "item_tags"}, ["content is item_tags", "5 integers", "embed reduce"]),
    ("DMGIN", {"groups": "codes_vq_image"}, ["groups is codes_vq_image", "--method vq"]),
    ("DMGIN", {"groups": "item_tags"}, ["groups is item_tags", "5 integers", "--method vq"]),
    ("DMGIN", {"groups": "item_emb_d16"}, ["groups is item_emb_d16", "16 floats", "--method vq"]),
    ("EST", {"content": None}, ["content is None", "embed reduce"]),
    ("EST", {"content": "item_tags"}, ["content is item_tags", "5 integers", "embed reduce"]),
    ("EST", {"num_heads": 5}, ["num_heads is 5", "token_dim 32"]),
    ("HyFormer", {"num_heads": 5}, ["num_heads is 5", "token_dim 32", "num_heads: 4"]),
    ("HyFormer", {"num_queries": 2}, ["num_queries is 2", "num_tokens is 3", "token_dim 32"]),
    ("InterFormer", {"num_heads": 16}, ["num_heads is 16"]),
    ("LONGER", {"group_size": 5}, ["group_size is 5", "token_dim 32"]),
    ("MUSE", {"content": None}, ["content is None", "embed reduce"]),
    ("MUSE", {"content": "item_tags"}, ["content is item_tags", "5 integers", "embed reduce"]),
    ("RankMixer", {"num_tokens": 5}, ["num_tokens is 5", "token_dim 32"]),
    ("SDIM", {"num_hashes": 7, "hash_width": 2}, ["num_hashes is 7", "hash_width 2"]),
    ("SDIM", {"num_heads": 5}, ["num_heads is 5", "attention_dim 48", "num_heads: 4"]),
    ("SEMINAR", {"codes": []}, ["--method pq"]),
    ("SEMINAR", {"codes": ["codes_rq_text"]}, ["codes is codes_rq_text"]),
    ("SEMINAR", {"codes": ["txt_emb_pca8"]}, ["codes is txt_emb_pca8", "8 floats", "--method pq"]),
    ("SEMINAR", {"code_weights": [1.0]}, ["1 code_weights", "2"]),
    ("SEMINAR", {"aligned": ["item_id"]}, ["aligned is"]),
    ("SEMINAR", {"aligned": ["item_id", "codes_pq_text"]}, ["aligned is"]),
    ("SIM", {"search_by": "hard"}, ["category is None", "item_tags"]),
    ("SIM", {"search_by": "hard", "category": "item_emb_d16"}, ["category is item_emb_d16", "16 floats"]),
    ("SimCEN", {"num_heads": 5}, ["num_heads is 5", "64"]),
    ("TWIN", {"cross_features": ["item_tagz"]}, ["item_tagz"]),
    ("TWIN", {"cross_features": ["item_id", "item_tags", "item_emb_d16"]}, ["item_id"]),
    ("TokenMixerLarge", {"num_heads": 5}, ["num_heads is 5"]),
    ("TokenMixerLarge", {"num_mixed": 5}, ["num_mixed is 5", "token_dim 32"]),
    ("TokenMixerLarge", {"num_tokens": 1}, ["num_tokens is 1"]),
    ("Transformer_DCN", {"history_mask": "published", "max_len": 3}, ["max_len 3", "first_k_cols 4"]),
    ("Transformer_DCN", {"dcn_hidden_units": []}, ["dcn_hidden_units is []"]),
    ("Transformer_DCN", {"num_heads": 5}, ["num_heads is 5", "96"]),
    ("Transformer_DCN", {"history_mask": "right"}, ["history_mask is 'right'", "'corrected', 'published'"]),
    ("Transformer_DCN_Quant", {"quantized_feature": "item_emb_d61"}, ["'item_emb_d61'", "'item_emb_d16'"]),
    ("Transformer_DCN_Quant", {"use_features": ["item_id", "txt_emb_pca8", "img_emb_pca8"]},
     ["quantized_feature is None", "txt_emb_pca8, img_emb_pca8"]),
    ("Transformer_DCN_Quant", {"use_features": ["item_id", "item_tags"]}, ["quantized_feature", "none"]),
    ("Transformer_DCN_Quant", {"top_k": 5000}, ["top_k", "1001"]),
    ("Transformer_DCN_Quant", {"num_clusters": 2000}, ["num_clusters", "1001"]),
    ("Transformer_DCN_Quant", {"codebook_num": 0, "top_k": 0}, ["codebook_num", "1001"]),
]  # fmt: skip


@pytest.mark.parametrize(("model", "settings", "named"), REFUSED)
def test_settings_that_do_not_fit(build, model, settings, named):
    with raises_naming(ConfigError, *named):
        build(f"{model}_tiny", **settings)


@pytest.mark.parametrize("model", ["DIN_CrossAttention", "EST", "HSTU", "LONGER", "OneTrans"])
def test_tokens_near_zero_stay_there(build, model):
    """Embeddings of rare ids do; a small epsilon would scale their noise to the length of all other tokens."""
    for epsilon, settings in ((1.0, {}), (1e-3, {"norm_epsilon": 1e-3})):
        built, _ = build(f"{model}_tiny", **settings)
        norms = [module for module in built.modules() if isinstance(module, (nn.LayerNorm, nn.RMSNorm, HSTULayer))]
        assert {getattr(norm, "eps", None) or norm.norm_epsilon for norm in norms} == {epsilon}
