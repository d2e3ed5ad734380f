// Fake quantization in one pass over memory: the functions of the library, for each type of number. Results equal those
// of reference.py to the bit: the same float32 operations in the same order, without contraction.
#include "cpu_activations.h"
#include "cpu_learned.h"
#include "cpu_weights.h"

extern "C" {

// The moving average of a range, and the scale and zero point that follow from it (observers.py: update_).
void update_range(float* range, const float* observed, float momentum, int64_t* nonfinite, float* scale, float* zero,
                  float levels, int symmetric) {
  if (observed[0] - observed[0] == 0.0f && observed[1] - observed[1] == 0.0f) {
    for (int i = 0; i < 2; ++i)
      range[i] = range[i] != range[i] ? observed[i] : range[i] + (observed[i] - range[i]) * momentum;
  } else {
    ++*nonfinite;
  }
  const float low = range[0] < 0.0f ? range[0] : 0.0f, high = range[1] > 0.0f ? range[1] : 0.0f;
  const float step = symmetric ? (-low > high ? -low : high) / levels : high / levels - low / levels;
  *scale = usable(step);
  const float rounded = std::nearbyint(-low / *scale);
  *zero = symmetric ? 0.0f : rounded > levels ? levels : rounded;
}

int64_t mask_words(int64_t n) { return pieces(n, kBlock) * kLanes; }
int64_t code_words(int64_t n) { return pieces(n, kFive) * kLanes; }

#define DEFINE_FOR(T, NAME)                                                                                           \
  void quantize_##NAME(const T* x, T* y, uint32_t* mask, int64_t n, const float* scale, const float* zero,            \
                       float qmin, float qmax, int clips, float clip_low, float clip_high, float* observed,           \
                       int threads) {                                                                                 \
    const Grid g{spread(*scale), spread(*zero), spread(qmin), spread(qmax), spread(clip_low), spread(clip_high)};     \
    if (clips) quantize_as_asked<T, true>(x, y, mask, n, g, observed, threads);                                       \
    else quantize_as_asked<T, false>(x, y, mask, n, g, observed, threads);                                            \
  }                                                                                                                   \
  void minmax_##NAME(const T* x, int64_t n, float* out, int threads) { minmax(x, n, out, threads); }                  \
  void quantize_rows_##NAME(const T* w, T* y, uint8_t* inside, int64_t outer, int64_t channels, int64_t inner,        \
                            const float* scale, float qmin, float qmax, int threads) {                                \
    quantize_rows(w, y, inside, outer, channels, inner, scale, qmin, qmax, threads);                                  \
  }                                                                                                                   \
  void weight_scale_##NAME(const T* w, int64_t outer, int64_t channels, int64_t inner, float qmax, float* out,        \
                           int threads) {                                                                             \
    weight_scale(w, outer, channels, inner, qmax, out, threads);                                                      \
  }                                                                                                                   \
  void learned_gradient_##NAME(const T* grad, const T* x, T* out, int64_t outer, int64_t channels, int64_t inner,      \
                               const float* scale, float qmin, float qmax, double factor, float* to_scale,             \
                               int threads) {                                                                          \
    learned_gradient(grad, x, out, outer, channels, inner, scale, qmin, qmax, factor, to_scale, threads);              \
  }                                                                                                                    \
  void learn_##NAME(const T* x, T* y, uint32_t* codes, int64_t n, const float* scale, const float* offset,             \
                    float qmin, float qmax, int clips, float clip_low, float clip_high, LearnedGrid* kept,             \
                    int threads) {                                                                                     \
    *kept = learned_grid(*scale, offset, qmin, qmax);                                                                  \
    const Grid g{spread(kept->scale), spread(kept->zero), spread(qmin), spread(qmax), spread(clip_low),                \
                 spread(clip_high)};                                                                                   \
    if (clips) learn<T, true>(x, y, codes, n, g, threads);                                                             \
    else learn<T, false>(x, y, codes, n, g, threads);                                                                  \
  }                                                                                                                    \
  void learned_pass_##NAME(const T* grad, const uint32_t* codes, T* out, int64_t n, const LearnedGrid* grid,           \
                           const float* offset, float qmin, float qmax, float clip_low, float clip_high,               \
                           double factor, float* to_scale, float* to_offset, int threads) {                            \
    const Slopes ends = end_slopes(*grid, qmin, qmax, clip_low, clip_high);                                            \
    double sums[2];                                                                                                    \
    if (offset) learned_pass<T, true>(grad, codes, out, n, ends, sums, threads);                                       \
    else learned_pass<T, false>(grad, codes, out, n, ends, sums, threads);                                             \
    double by_scale = sums[0] * (factor / kSteps);                                                                     \
    if (offset) {                                                                                                      \
      const double by_offset = sums[1] * factor;                                                                       \
      by_scale -= by_offset * (static_cast<double>(*offset) / grid->scale);                                            \
      *to_offset = static_cast<float>(by_offset);                                                                      \
    }                                                                                                                  \
    *to_scale = static_cast<float>(by_scale);                                                                          \
  }

DEFINE_FOR(float, float32)
DEFINE_FOR(BFloat16, bfloat16)
DEFINE_FOR(Half, float16)

void pass_inside_4(const uint32_t* grad, const uint32_t* mask, uint32_t* out, int64_t n, int threads) {
  pass_inside(grad, mask, out, n, threads);
}
void pass_inside_2(const uint16_t* grad, const uint32_t* mask, uint16_t* out, int64_t n, int threads) {
  pass_inside(grad, mask, out, n, threads);
}
}
