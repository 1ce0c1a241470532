"""What is known of operations by their names in ATen: how they depend on what they read."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


MOVING = _names("""
    t transpose permute movedim view reshape _unsafe_view flatten unflatten squeeze unsqueeze expand expand_as repeat
    repeat_interleave clone contiguous alias _to_copy to lift_fresh_copy cat stack split split_with_sizes chunk unbind
    slice select narrow index index_select gather flip roll unfold im2col diagonal tril triu pad constant_pad_nd
    embedding where masked_fill dropout alpha_dropout feature_dropout sym_size
""")
"""They move numbers about, or leave some out."""

LINEAR = _names("""
    linear matmul mm bmm mv dot addmm baddbmm einsum bilinear add sub rsub neg mul div sum mean cumsum
    conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    upsample_nearest2d upsample_bilinear2d
""")
"""Linear, or a product of two of their inputs."""

SMOOTH = _names("""
    gelu silu tanh sigmoid softplus mish elu selu celu softsign log_sigmoid glu exp exp2 log log1p log2 expm1 sin cos
    erf sqrt rsqrt reciprocal pow square prod softmax _softmax _safe_softmax log_softmax _log_softmax logsumexp
    layer_norm native_layer_norm group_norm native_group_norm rms_norm _fused_rms_norm
    _native_batch_norm_legit_no_training var std var_mean norm linalg_vector_norm cosine_similarity
    scaled_dot_product_attention
""")

BENT = _names("""
    hardtanh hardswish hardsigmoid relu6 clamp clamp_max maximum minimum max min amax amin softshrink hardshrink
    max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
""")
"""Differentiable almost everywhere."""

CHANNELWISE = _names("""
    relu leaky_relu abs elu gelu silu tanh sigmoid softplus hardtanh hardswish mish dropout native_dropout clone alias
    max_pool2d avg_pool2d
""")
"""They leave every channel to itself: what follows reads the directions that the map before them writes."""

DIFFERENTIABLE = MOVING | LINEAR | SMOOTH | BENT

FLAT = _names("sign sgn round floor ceil trunc frac heaviside argmax argmin argsort one_hot gt ge lt le eq ne")
"""Their derivative is zero almost everywhere."""

DROPOUT = _names("dropout alpha_dropout feature_dropout")

RANDOM = _names("native_dropout bernoulli rand_like randn_like rrelu_with_noise")
