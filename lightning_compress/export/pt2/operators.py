"""What the graph of a ``.pt2`` file may call: the list of what is allowed.

Operators of PyTorch that compute tensors from tensors and numbers, public ones and those that ``torch.export`` itself
writes. None of them opens files or changes what memory a tensor stands for. Kernels that are known not to check the
shapes that they are given, or to hand out memory as it is, are left out, and so are backends' own. PyTorch does not
promise that every other operator is safe from hostile arguments: a graph of a stranger belongs into a process of its
own. Forms that write into a tensor that is given to them (``out=``) are left out.
"""

from __future__ import annotations

import re

from lightning_compress.errors import CompressionError

_ATEN = """
__and__ __lshift__ __or__ __rshift__ __xor__ _adaptive_avg_pool2d _adaptive_avg_pool3d _assert_async
_assert_scalar _assert_tensor_metadata _cdist_forward _conj _conj_physical _convolution _fft_c2c _fft_c2r
_fft_r2c _linalg_det _linalg_eigh _linalg_slogdet _linalg_solve_ex _linalg_svd _log_softmax _pdist_forward
_prelu_kernel _scaled_dot_product_attention_math _softmax _to_copy _trilinear _unsafe_view
_upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d
_upsample_nearest_exact3d abs absolute acos acosh adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d add addbmm addcdiv addcmul addmm addmv addr
adjoint affine_grid_generator alias alias_copy all alpha_dropout amax amin aminmax angle any arange arccos
arccosh arcsin arcsinh arctan arctan2 arctanh argmax argmin argsort argwhere as_strided as_strided_copy
as_strided_scatter asin asinh atan atan2 atanh atleast_1d atleast_2d atleast_3d avg_pool1d avg_pool2d
avg_pool3d baddbmm bartlett_window batch_norm bernoulli bilinear binary_cross_entropy
binary_cross_entropy_with_logits bincount binomial bitwise_and bitwise_left_shift bitwise_not bitwise_or
bitwise_right_shift bitwise_xor blackman_window block_diag bmm broadcast_tensors broadcast_to bucketize
cartesian_prod cat cauchy cdist ceil celu chain_matmul channel_shuffle cholesky cholesky_inverse
cholesky_solve chunk clamp clamp_max clamp_min clip clone col2im column_stack complex concat concatenate conj
conj_physical constant_pad_nd contiguous conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d
conv_transpose3d convolution copy copysign corrcoef cos cosh cosine_embedding_loss cosine_similarity
count_nonzero cov cross cross_entropy_loss cummax cummin cumprod cumsum cumulative_trapezoid deg2rad det
detach detach_copy diag diag_embed diagflat diagonal diagonal_copy diagonal_scatter diff digamma dim dist div
divide dot dropout dsplit dstack einsum elu embedding embedding_bag eq erf erfc erfinv exp exp2 expand
expand_as expand_copy expm1 exponential eye fake_quantize_per_channel_affine fake_quantize_per_tensor_affine
fake_quantize_per_tensor_affine_cachemask feature_alpha_dropout feature_dropout fft_fft fft_fft2 fft_fftfreq
fft_fftn fft_fftshift fft_hfft fft_hfft2 fft_hfftn fft_ifft fft_ifft2 fft_ifftn fft_ifftshift fft_ihfft
fft_ihfft2 fft_ihfftn fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftfreq fft_rfftn fill
fill_diagonal fix flatten flip fliplr flipud float_power floor floor_divide fmax fmin fmod frac
fractional_max_pool2d fractional_max_pool3d frexp frobenius_norm full full_like gather gcd ge gelu geometric
geqrf ger glu greater greater_equal grid_sampler group_norm gru gt hamming_window hann_window hardshrink
hardsigmoid hardswish hardtanh hash_tensor heaviside hinge_embedding_loss histc histogram hsplit hstack
huber_loss hypot i0 igamma igammac im2col imag index index_add index_copy index_fill index_put index_reduce
index_select inner instance_norm inverse is_nonzero isclose isfinite isin isinf isnan isneginf isposinf isreal
item kaiser_window kl_div kron kthvalue l1_loss layer_norm lcm ldexp le leaky_relu lerp less less_equal lgamma
lift lift_fresh lift_fresh_copy linalg_cholesky linalg_cholesky_ex linalg_cond linalg_cross linalg_det
linalg_diagonal linalg_eig linalg_eigh linalg_eigvals linalg_eigvalsh linalg_householder_product linalg_inv
linalg_inv_ex linalg_ldl_factor linalg_ldl_factor_ex linalg_ldl_solve linalg_lstsq linalg_lu linalg_lu_factor
linalg_lu_factor_ex linalg_lu_solve linalg_matmul linalg_matrix_exp linalg_matrix_norm linalg_matrix_power
linalg_matrix_rank linalg_multi_dot linalg_norm linalg_pinv linalg_qr linalg_slogdet linalg_solve
linalg_solve_ex linalg_solve_triangular linalg_svd linalg_svdvals linalg_tensorinv linalg_tensorsolve
linalg_vander linalg_vecdot linalg_vector_norm linear linspace log log10 log1p log2 log_normal log_sigmoid
log_sigmoid_forward log_softmax logaddexp logaddexp2 logcumsumexp logdet logical_and logical_not logical_or
logical_xor logit logspace logsumexp lstm lt lu_solve lu_unpack mH mT margin_ranking_loss masked_fill
masked_scatter masked_select matmul matrix_H matrix_exp matrix_power max max_pool1d max_pool1d_with_indices
max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices max_unpool2d max_unpool3d maximum mean
median meshgrid min minimum mish mm mode moveaxis movedim mse_loss msort mul multi_margin_loss
multilabel_margin_loss multilabel_margin_loss_forward multinomial multiply mv mvlgamma nan_to_num nanmean
nanmedian nanquantile nansum narrow narrow_copy native_channel_shuffle native_dropout native_group_norm
native_layer_norm native_norm ne neg negative new_full new_ones new_zeros nextafter nll_loss nll_loss2d
nll_loss2d_forward nll_loss_forward nll_loss_nd nonzero nonzero_static norm norm_except_dim normal
normal_functional not_equal nuclear_norm numel numpy_T one_hot ones ones_like orgqr ormqr outer pad
pairwise_distance pdist permute permute_copy pixel_shuffle pixel_unshuffle poisson poisson_nll_loss polar
polygamma positive pow prelu prod qr quantile rad2deg rand rand_like randint randint_like randn randn_like
random randperm range ravel real reciprocal reflection_pad1d reflection_pad2d reflection_pad3d relu relu6
remainder renorm repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape
reshape_as resolve_conj resolve_neg rms_norm rnn_relu rnn_tanh roll rot90 round row_stack rrelu
rrelu_with_noise rrelu_with_noise_functional rsqrt rsub scalar_tensor scaled_dot_product_attention scatter
scatter_add scatter_reduce searchsorted select select_copy select_scatter selu sgn sigmoid sign signbit silu
sin sinc sinh size slice slice_copy slice_scatter slogdet smooth_l1_loss soft_margin_loss softmax softplus
softshrink sort special_airy_ai special_bessel_j0 special_bessel_j1 special_bessel_y0 special_bessel_y1
special_chebyshev_polynomial_t special_chebyshev_polynomial_u special_chebyshev_polynomial_v
special_chebyshev_polynomial_w special_digamma special_entr special_erf special_erfc special_erfcx
special_erfinv special_exp2 special_expit special_expm1 special_gammainc special_gammaincc special_gammaln
special_hermite_polynomial_h special_hermite_polynomial_he special_i0 special_i0e special_i1 special_i1e
special_laguerre_polynomial_l special_legendre_polynomial_p special_log1p special_log_ndtr special_log_softmax
special_logit special_logsumexp special_modified_bessel_i0 special_modified_bessel_i1
special_modified_bessel_k0 special_modified_bessel_k1 special_multigammaln special_ndtr special_ndtri
special_polygamma special_psi special_round special_scaled_modified_bessel_k0
special_scaled_modified_bessel_k1 special_shifted_chebyshev_polynomial_t
special_shifted_chebyshev_polynomial_u special_shifted_chebyshev_polynomial_v
special_shifted_chebyshev_polynomial_w special_sinc special_softmax special_spherical_bessel_j0
special_xlog1py special_xlogy special_zeta split split_copy split_with_sizes split_with_sizes_copy sqrt square
squeeze squeeze_copy stack std std_mean stft sub subtract sum sum_to_size svd swapaxes swapdims
sym_constrain_range sym_constrain_range_for_size sym_is_contiguous sym_numel sym_size sym_storage_offset
sym_stride t t_copy take take_along_dim tan tanh tensor_split tensordot threshold tile to topk trace transpose
transpose_copy trapezoid trapz triangular_solve tril tril_indices triplet_margin_loss triu triu_indices
true_divide trunc type_as unbind unbind_copy unflatten unfold unfold_copy uniform unique_consecutive
unique_dim unique_dim_consecutive unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze unsqueeze_copy
upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
upsample_nearest3d upsample_trilinear3d vander var var_mean vdot view view_as view_as_complex
view_as_complex_copy view_as_real view_as_real_copy view_copy vsplit vstack where xlogy zero zeros zeros_like
"""

ATEN = frozenset(_ATEN.split())
"""Names in ``torch.ops.aten``; with an underscore behind them, in place."""

VISION = frozenset({"deform_conv2d", "nms", "ps_roi_align", "ps_roi_pool", "roi_align", "roi_pool"})
"""Names in ``torch.ops.torchvision``."""

CONTROL = frozenset(
    {"associative_scan", "cond", "map_impl", "scan", "while_loop", "wrap_with_autocast", "wrap_with_set_grad_enabled"}
)
"""Names in ``torch.ops.higher_order``; the graphs that they run are checked like the whole."""

_DECOMPOSED = re.compile(r"(de)?quantize_per_(tensor|channel|channel_group|token)")
_SIZES = re.compile(
    r"torch\.sym_(float|int|ite|max|min|not|sqrt|sum)|math\.(ceil|floor|trunc|sqrt|pow|log2|gcd)|"
    r"_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
_OPERATOR = re.compile(r"torch\.ops\.(?P<space>\w+)\.(?P<name>\w+)\.(?P<overload>[^\W_]\w*)")
_CONTROL = re.compile(r"torch\.ops\.higher_order\.(\w+)")
_WRITES = re.compile(r"(^|_)out(_|$)")
_METHODS = frozenset({"op", "op_overloads", "overloads"})


_trusted: set[str] = set()


def trust(name: str) -> None:
    """Allow an operator of your own in ``.pt2`` files, for the rest of this process.

    Call it where the operator is registered. ``to_torch_export`` does so for what the models call that it is given.

    Args:
        name: ``namespace.name``.

    Raises:
        CompressionError: That is no such name.
    """
    if not re.fullmatch(r"\w+\.\w+", name):
        raise CompressionError.field("trust", expected="namespace.name, such as 'mine.rotate'", got=name)
    _trusted.add(name)


def is_allowed(target: str) -> bool:
    """Whether a graph may call a function, named as ``.pt2`` files name it.

    Example:
        >>> is_allowed("torch.ops.aten.relu_.default"), is_allowed("torch.ops.aten.save.default")
        (True, False)
    """
    control = _CONTROL.fullmatch(target)
    if control is not None:
        return control[1] in CONTROL
    found = _OPERATOR.fullmatch(target)
    if found is None:
        return _SIZES.fullmatch(target) is not None
    space, name, overload = found["space"], found["name"], found["overload"]
    # An operator without its overload would take any, and has methods that look like overloads and reach any object.
    if _WRITES.search(overload) or overload in _METHODS:
        return False
    if f"{space}.{name}" in _trusted:
        return True
    if space == "aten":
        return name in ATEN or (name.endswith("_") and name[:-1] in ATEN)
    if space == "quantized_decomposed":
        return _DECOMPOSED.fullmatch(name) is not None
    return space == "torchvision" and name in VISION
