// Fake quantization in one pass over memory. Results equal those of eager.py to the bit: the same float32 operations
// in the same order, without contraction. Work is cut into chunks of fixed size, so that sums do not depend on the
// number of threads. Written with the vector types of GCC and Clang: auto-vectorization misses the masks.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#ifdef __AVX__
#include <immintrin.h>
#endif

namespace {

#ifdef __AVX512F__
constexpr int64_t kLanes = 16;
#else
constexpr int64_t kLanes = 8;
#endif
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Shorts __attribute__((vector_size(2 * kLanes)));
typedef float HalfFloats __attribute__((vector_size(2 * kLanes)));
typedef double Doubles __attribute__((vector_size(4 * kLanes)));

// A mask takes a bit a value: value i of a block is bit i / kLanes of word i % kLanes.
constexpr int64_t kBlock = 32 * kLanes;
constexpr int64_t kChunk = 16384;  // a multiple of kBlock

struct BFloat16 { uint16_t bits; };
struct Half { _Float16 value; };

template <class V, class T>
inline V load_raw(const T* p) { V v; std::memcpy(&v, p, sizeof v); return v; }

inline Floats load(const float* p) { return load_raw<Floats>(p); }
inline Floats load(const BFloat16* p) {
  return reinterpret_cast<Floats>(__builtin_convertvector(load_raw<Shorts>(p), Words) << 16);
}
inline Floats load(const Half* p) {
  Floats v;
  for (int64_t i = 0; i < kLanes; ++i) v[i] = static_cast<float>(p[i].value);
  return v;
}
inline void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }
inline void store(BFloat16* p, Floats v) {
  const Words u = reinterpret_cast<Words>(v);
  const Words rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const Words nan = reinterpret_cast<Words>(v != v);
  const Shorts out = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0u), Shorts);
  std::memcpy(p, &out, sizeof out);
}
inline void store(Half* p, Floats v) {
  for (int64_t i = 0; i < kLanes; ++i) p[i].value = static_cast<_Float16>(v[i]);
}

inline Floats spread(float v) { return v - Floats{}; }
inline Ints spread(int32_t v) { return v - Ints{}; }
inline Floats choose(Ints mask, Floats a, Floats b) {
  return reinterpret_cast<Floats>((mask & reinterpret_cast<Ints>(a)) | (~mask & reinterpret_cast<Ints>(b)));
}
inline Ints choose(Ints mask, Ints a, Ints b) { return (mask & a) | (~mask & b); }

// Comparisons are written so that NaN passes through, as torch.clamp lets it.
inline Floats clamp(Floats v, Floats low, Floats high) {
  v = v < low ? low : v;
  return v > high ? high : v;
}

// Half to even, exact below 2^22; beyond, every integer range is saturated whatever the result.
inline Floats round_even(Floats v) {
  const Floats shift = spread(12582912.0f);
  return (v + shift) - shift;
}
// The same with the sign of zero kept, as torch.round does.
inline Floats round_even_signed(Floats v) {
  const Words sign = reinterpret_cast<Words>(v) & 0x80000000u;
  return reinterpret_cast<Floats>(reinterpret_cast<Words>(round_even(v)) | sign);
}

// Integers in the order of the floats, NaN at both ends: minimum and maximum that notice NaN.
inline Ints ordered(Floats v) {
  const Ints i = reinterpret_cast<Ints>(v);
  return i ^ ((i >> 31) & 0x7fffffff);
}
inline float unordered(int32_t i) {
  i ^= (i >> 31) & 0x7fffffff;
  float v;
  std::memcpy(&v, &i, 4);
  return v;
}

struct Extremes {
  Ints low = spread(std::numeric_limits<int32_t>::max());
  Ints high = spread(std::numeric_limits<int32_t>::min());
  void take(Ints smallest, Ints largest) {
    low = choose(smallest < low, smallest, low);
    high = choose(largest > high, largest, high);
  }
};

void write_extremes(const std::vector<Extremes>& parts, float* out) {
  Extremes all;
  for (const Extremes& part : parts) all.take(part.low, part.high);
  int32_t low = all.low[0], high = all.high[0];
  for (int64_t i = 1; i < kLanes; ++i) {
    low = all.low[i] < low ? all.low[i] : low;
    high = all.high[i] > high ? all.high[i] : high;
  }
  const float smallest = unordered(low), largest = unordered(high);
  const bool nan = smallest != smallest || largest != largest;
  out[0] = nan ? std::numeric_limits<float>::quiet_NaN() : smallest;
  out[1] = nan ? std::numeric_limits<float>::quiet_NaN() : largest;
}

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t pieces(int64_t n, int64_t size = kChunk) { return (n + size - 1) / size; }

// Calls body(job) for every job, on as many threads as the number of values is worth.
template <class Body>
void in_parallel(int64_t jobs, int64_t values, int threads, Body body) {
  // Waking a thread takes as long as four chunks.
  const int used = static_cast<int>(least(least(values / (4 * kChunk), jobs), threads));
#pragma omp parallel for schedule(static) num_threads(used > 1 ? used : 1) if (used > 1)
  for (int64_t job = 0; job < jobs; ++job) body(job);
}

// A vector's worth of values that ends early is worked on in a buffer, filled up with its first value.
template <class T, int64_t SIZE = kLanes>
struct Padded {
  T values[SIZE];
  Padded(const T* from, int64_t count) {
    for (int64_t i = 0; i < SIZE; ++i) values[i] = from[i < count ? i : 0];
  }
};

struct Grid { Floats scale, zero, qmin, qmax, clip_low, clip_high; };

template <class T, bool CLIP, bool MASK, bool OBSERVE>
inline void quantize_lanes(const T* x, T* y, const Grid& g, Words& words, uint32_t bit, Extremes& seen) {
  const Floats raw = load(x);
  const Floats v = CLIP ? clamp(raw, g.clip_low, g.clip_high) : raw;
  const Floats q = round_even(v / g.scale) + g.zero;
  if (MASK) {
    Ints in = (q >= g.qmin) & (q <= g.qmax);
    if (CLIP) in &= (raw > g.clip_low) & (raw < g.clip_high);
    words |= reinterpret_cast<Words>(in) & bit;
  }
  if (OBSERVE) seen.take(ordered(v), ordered(v));
  store(y, (clamp(q, g.qmin, g.qmax) - g.zero) * g.scale);
}

template <class T, bool CLIP, bool MASK, bool OBSERVE>
void quantize(const T* x, T* y, uint32_t* mask, int64_t n, const Grid& grid, float* observed, int threads) {
  std::vector<Extremes> seen(OBSERVE ? pieces(n) : 0);
  in_parallel(pieces(n), n, threads, [&](int64_t piece) {
    const Grid g = grid;
    Extremes mine;
    const int64_t end = least(n, (piece + 1) * kChunk);
    for (int64_t block = piece * kChunk; block < end; block += kBlock) {
      Words words{};
      const int64_t rest = least(end - block, kBlock), rows = rest / kLanes;
      const T* from = x + block;
      T* to = y + block;
      for (int64_t row = 0; row < rows; ++row, from += kLanes, to += kLanes)
        quantize_lanes<T, CLIP, MASK, OBSERVE>(from, to, g, words, 1u << row, mine);
      if (rest % kLanes) {
        Padded<T> tail(from, rest % kLanes), out = tail;
        quantize_lanes<T, CLIP, MASK, OBSERVE>(tail.values, out.values, g, words, 1u << rows, mine);
        std::memcpy(to, out.values, rest % kLanes * sizeof(T));
      }
      if (MASK) std::memcpy(mask + block / 32, &words, sizeof words);
    }
    if (OBSERVE) seen[piece] = mine;
  });
  if (OBSERVE) write_extremes(seen, observed);
}

template <class T, bool CLIP>
void quantize_as_asked(const T* x, T* y, uint32_t* mask, int64_t n, const Grid& g, float* observed, int threads) {
  if (mask && observed) quantize<T, CLIP, true, true>(x, y, mask, n, g, observed, threads);
  else if (mask) quantize<T, CLIP, true, false>(x, y, mask, n, g, observed, threads);
  else if (observed) quantize<T, CLIP, false, true>(x, y, mask, n, g, observed, threads);
  else quantize<T, CLIP, false, false>(x, y, mask, n, g, observed, threads);
}

inline void keep(const uint32_t* grad, uint32_t* out, Words in) {
  const Words kept = load_raw<Words>(grad) & in;
  std::memcpy(out, &kept, sizeof kept);
}
inline void keep(const uint16_t* grad, uint16_t* out, Words in) {
  const Shorts kept = load_raw<Shorts>(grad) & __builtin_convertvector(in, Shorts);
  std::memcpy(out, &kept, sizeof kept);
}

template <class U>
void pass_inside(const U* grad, const uint32_t* mask, U* out, int64_t n, int threads) {
  in_parallel(pieces(n), n, threads, [&](int64_t piece) {
    const int64_t end = least(n, (piece + 1) * kChunk);
    for (int64_t block = piece * kChunk; block < end; block += kBlock) {
      const Words words = load_raw<Words>(mask + block / 32);
      const int64_t rest = least(end - block, kBlock), rows = rest / kLanes;
      const U* from = grad + block;
      U* to = out + block;
      for (int64_t row = 0; row < rows; ++row, from += kLanes, to += kLanes)
        keep(from, to, reinterpret_cast<Words>((words & (1u << row)) != 0u));
      if (rest % kLanes) {
        Padded<U> tail(from, rest % kLanes), kept = tail;
        keep(tail.values, kept.values, reinterpret_cast<Words>((words & (1u << rows)) != 0u));
        std::memcpy(to, kept.values, rest % kLanes * sizeof(U));
      }
    }
  });
}

template <class T>
void minmax(const T* x, int64_t n, float* out, int threads) {
  std::vector<Extremes> seen(pieces(n));
  in_parallel(pieces(n), n, threads, [&](int64_t piece) {
    Extremes mine;
    const int64_t end = least(n, (piece + 1) * kChunk);
    int64_t i = piece * kChunk;
    for (; i + kLanes <= end; i += kLanes) {
      const Ints key = ordered(load(x + i));
      mine.take(key, key);
    }
    if (i < end) {
      const Ints key = ordered(load(Padded<T>(x + i, end - i).values));
      mine.take(key, key);
    }
    seen[piece] = mine;
  });
  write_extremes(seen, out);
}

// Weights, seen as [outer, channels, inner].
template <class T>
void quantize_rows(const T* w, T* y, uint8_t* inside, int64_t outer, int64_t channels, int64_t inner,
                   const float* scale, float qmin, float qmax, int threads) {
  in_parallel(outer * channels, outer * channels * inner, threads, [&](int64_t row) {
    const Floats s = spread(scale[row % channels]), low = spread(qmin), high = spread(qmax);
    const auto lanes = [&](const T* from, T* to) {
      const Floats q = round_even_signed(load(from) / s);
      store(to, clamp(q, low, high) * s);
      return (q >= low) & (q <= high);
    };
    const int64_t start = row * inner;
    for (int64_t i = 0; i < inner; i += kLanes) {
      const int64_t at = start + i, count = least(inner - i, kLanes);
      Ints in;
      if (count == kLanes) {
        in = lanes(w + at, y + at);
      } else {
        Padded<T> values(w + at, count);
        in = lanes(values.values, values.values);
        std::memcpy(y + at, values.values, count * sizeof(T));
      }
      for (int64_t lane = 0; inside && lane < count; ++lane) inside[at + lane] = in[lane] != 0;
    }
  });
}

inline Ints larger(Ints most, Floats v) {
  const Ints magnitude = reinterpret_cast<Ints>(v) & 0x7fffffff;  // NaN is the largest of all
  return choose(magnitude > most, magnitude, most);
}

template <class T>
void absmax_rows(const T* w, int64_t outer, int64_t channels, int64_t inner, float* out, int threads) {
  in_parallel(channels, outer * channels * inner, threads, [&](int64_t channel) {
    Ints most{};
    for (int64_t o = 0; o < outer; ++o) {
      const T* from = w + (o * channels + channel) * inner;
      int64_t i = 0;
      for (; i + kLanes <= inner; i += kLanes) most = larger(most, load(from + i));
      if (i < inner) most = larger(most, load(Padded<T>(from + i, inner - i).values));
    }
    int32_t largest = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) largest = most[lane] > largest ? most[lane] : largest;
    std::memcpy(out + channel, &largest, 4);
  });
}

// Keeps a scale positive, finite and a normal number; 0 and NaN become 1 (observers.py: _usable).
inline float usable(float scale) {
  constexpr float kSmallest = 0x1p-100f, kLargest = std::numeric_limits<float>::max();
  return scale > 0.0f ? (scale < kSmallest ? kSmallest : scale > kLargest ? kLargest : scale) : 1.0f;
}

// Symmetric scales of a weight's channels; one of zeros takes the largest of the others.
template <class T>
void weight_scale(const T* w, int64_t outer, int64_t channels, int64_t inner, float qmax, float* out, int threads) {
  absmax_rows(w, outer, channels, inner, out, threads);
  float largest = 0.0f;
  for (int64_t channel = 0; channel < channels; ++channel) {
    out[channel] /= qmax;
    if (largest == largest && !(out[channel] <= largest)) largest = out[channel];  // NaN is the largest
  }
  for (int64_t channel = 0; channel < channels; ++channel)
    out[channel] = usable(out[channel] > 0.0f ? out[channel] : largest);
}

// What backward needs of an activation whose scale is learned: a code of six bits a value, as eager.learn defines it.
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
