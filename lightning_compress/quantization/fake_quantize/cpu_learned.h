// Learned scales (LSQ): what backward needs is kept as codes, and sums give the gradients of scale and offset.
#pragma once

#include "cpu_activations.h"

namespace {

// What backward needs of an activation whose scale is learned: a code of six bits a value, as reference.py defines it.
// Five codes share a word: those of five rows, a vector of words.
constexpr int64_t kFive = 5 * kLanes;
constexpr int64_t kFives = 400 * kFive;  // values of a chunk
constexpr int32_t kBelow = -32, kCutLow = -31, kCutHigh = 30, kAbove = 31;
constexpr float kSteps = 58.0f;

template <class T, bool CLIP>
inline Words learn_lanes(const T* x, T* y, const Grid& g) {
  const Floats raw = load(x), low = g.qmin - g.zero, high = g.qmax - g.zero;
  const Floats u = (CLIP ? clamp(raw, g.clip_low, g.clip_high) : raw) / g.scale;
  const Floats rounded = round_even(u);
  const Ints over = u > low, in = over & (u < high);
  // Adding 1.5 * 2^23 rounds, and leaves the integer in the low bits.
  const Ints steps = reinterpret_cast<Ints>((rounded - u) * kSteps + 12582912.0f);
  Ints code = choose(in, steps, over ^ spread(kBelow));  // kAbove is ~kBelow; NaN counts as below
  if (CLIP) {
    code = choose(in & (raw <= g.clip_low), spread(kCutLow), code);
    code = choose(in & (raw >= g.clip_high), spread(kCutHigh), code);
  }
  store(y, (clamp(rounded + g.zero, g.qmin, g.qmax) - g.zero) * g.scale);
  return reinterpret_cast<Words>(code) & 0x3fu;
}

template <class T, bool CLIP>
inline void learn_five(const T* x, T* y, uint32_t* codes, const Grid& g) {
  Words five{};
#pragma GCC unroll 5
  for (int64_t r = 0; r < 5; ++r) five |= learn_lanes<T, CLIP>(x + r * kLanes, y + r * kLanes, g) << (6 * r);
  std::memcpy(codes, &five, sizeof five);
}

template <class T, bool CLIP>
void learn(const T* x, T* y, uint32_t* codes, int64_t n, const Grid& grid, int threads) {
  in_parallel(pieces(n, kFives), n, threads, [&](int64_t piece) {
    const Grid g = grid;
    const int64_t end = least(n, (piece + 1) * kFives);
    int64_t at = piece * kFives;
    for (; at + kFive <= end; at += kFive) learn_five<T, CLIP>(x + at, y + at, codes + at / 5, g);
    if (at < end) {
      Padded<T, kFive> tail(x + at, end - at);
      learn_five<T, CLIP>(tail.values, tail.values, codes + at / 5, g);
      std::memcpy(y + at, tail.values, (end - at) * sizeof(T));
    }
  });
}

struct Sums {
  Doubles first{}, second{};
  double at(int64_t lane) const { return lane < kLanes / 2 ? first[lane] : second[lane - kLanes / 2]; }
};
inline Doubles wide(HalfFloats v) {
#if defined(__AVX512F__)
  return reinterpret_cast<Doubles>(_mm512_cvtps_pd(reinterpret_cast<__m256>(v)));
#elif defined(__AVX__)
  return reinterpret_cast<Doubles>(_mm256_cvtps_pd(reinterpret_cast<__m128>(v)));  // GCC converts by way of the stack
#else
  return __builtin_convertvector(v, Doubles);
#endif
}
inline void add(Sums& sums, Floats v) {
  HalfFloats halves[2];
  std::memcpy(halves, &v, sizeof v);
  sums.first += wide(halves[0]);
  sums.second += wide(halves[1]);
}

// The grid of a learned activation, as learned.py has it, and the gradients of what it was made from.
struct LearnedGrid { float scale, zero; };

inline LearnedGrid learned_grid(float scale, const float* offset, float qmin, float qmax) {
  constexpr float kSmallest = 0x1p-40f;
  LearnedGrid grid{scale < kSmallest ? kSmallest : scale, 0.0f};
  if (offset) {
    const float rounded = std::nearbyint(qmin - *offset / grid.scale);
    grid.zero = rounded < qmin ? qmin : rounded > qmax ? qmax : rounded;
  }
  return grid;
}

// Slopes of the scale in steps, behind the ends.
struct Slopes { Floats below, cut_low, cut_high, above; };

inline Slopes end_slopes(const LearnedGrid& grid, float qmin, float qmax, float clip_low, float clip_high) {
  const float low = clip_low / grid.scale, high = clip_high / grid.scale;
  return {spread((qmin - grid.zero) * kSteps), spread((std::nearbyint(low) - low) * kSteps),
          spread((std::nearbyint(high) - high) * kSteps), spread((qmax - grid.zero) * kSteps)};
}

template <class T, bool ZERO>
inline void learned_five(const T* grad, T* out, Words five, const Slopes& ends, Sums& to_scale, Sums& to_zero) {
#pragma GCC unroll 5
  for (int64_t r = 0; r < 5; ++r) {
    const Floats g = load(grad + r * kLanes);
    const Ints code = reinterpret_cast<Ints>(five << (26 - 6 * r)) >> 26;
    const Ints below = code == kBelow, above = code == kAbove;
    const Ints in = (code > kCutLow) & (code < kCutHigh);
    const Floats end = choose(code < 0, choose(below, ends.below, ends.cut_low),
                              choose(above, ends.above, ends.cut_high));
    store(out + r * kLanes, choose(in, g, Floats{}));
    add(to_scale, g * choose(in, __builtin_convertvector(code, Floats), end));
    if (ZERO) add(to_zero, choose(below | above, g, Floats{}));
  }
}

// The gradient of x, and two sums: gradients times the slopes in steps, and the gradients outside of the grid.
template <class T, bool ZERO>
void learned_pass(const T* grad, const uint32_t* codes, T* out, int64_t n, const Slopes& slopes, double* totals,
                  int threads) {
  std::vector<double> parts(2 * pieces(n, kFives));
  in_parallel(pieces(n, kFives), n, threads, [&](int64_t piece) {
    Sums scale, zero;
    const Slopes ends = slopes;
    const int64_t end = least(n, (piece + 1) * kFives);
    int64_t at = piece * kFives;
    for (; at + kFive <= end; at += kFive)
      learned_five<T, ZERO>(grad + at, out + at, load_raw<Words>(codes + at / 5), ends, scale, zero);
    if (at < end) {
      Padded<T, kFive> tail(grad + at, end - at);
      for (int64_t i = end - at; i < kFive; ++i) tail.values[i] = T{};
      learned_five<T, ZERO>(tail.values, tail.values, load_raw<Words>(codes + at / 5), ends, scale, zero);
      std::memcpy(out + at, tail.values, (end - at) * sizeof(T));
    }
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      parts[2 * piece] += scale.at(lane);
      parts[2 * piece + 1] += zero.at(lane);
    }
  });
  totals[0] = totals[1] = 0.0;
  for (size_t part = 0; part < parts.size(); ++part) totals[part % 2] += parts[part];
}

// LSQ of a symmetric grid: the gradient of x, and per channel the sum that is the gradient of its scale, times factor.
template <class T>
void learned_gradient(const T* grad, const T* x, T* out, int64_t outer, int64_t channels, int64_t inner,
                      const float* scale, float qmin, float qmax, double factor, float* to_scale, int threads) {
  const int64_t per_row = pieces(inner), jobs = outer * channels * per_row;
  std::vector<double> parts(jobs), totals(channels);
  in_parallel(jobs, outer * channels * inner, threads, [&](int64_t job) {
    const int64_t row = job / per_row, end = (row + 1) * inner;
    const int64_t start = row * inner + job % per_row * kChunk, stop = least(end, start + kChunk);
    const Floats s = spread(scale[row % channels]), low = spread(qmin), high = spread(qmax);
    Sums sums;
    const auto lanes = [&](const T* from, const T* slopes, T* to) {
      const Floats u = load(from) / s, g = load(slopes);
      const Ints in = (u > low) & (u < high);
      store(to, choose(in, g, Floats{}));
      add(sums, g * choose(in | (u != u), round_even(u) - u, choose(u <= low, low, high)));
    };
    int64_t i = start;
    for (; i + kLanes <= stop; i += kLanes) lanes(x + i, grad + i, out + i);
    if (i < stop) {
      Padded<T> values(x + i, stop - i), slopes(grad + i, stop - i);
      for (int64_t lane = stop - i; lane < kLanes; ++lane) slopes.values[lane] = T{};
      lanes(values.values, slopes.values, values.values);
      std::memcpy(out + i, values.values, (stop - i) * sizeof(T));
    }
    for (int64_t lane = 0; lane < kLanes; ++lane) parts[job] += sums.at(lane);
  });
  for (int64_t job = 0; job < jobs; ++job) totals[job / per_row % channels] += parts[job];
  for (int64_t channel = 0; channel < channels; ++channel)
    to_scale[channel] = static_cast<float>(totals[channel] * factor);
}

}  // namespace
