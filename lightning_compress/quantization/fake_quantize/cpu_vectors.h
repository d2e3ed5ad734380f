// Vectors of floats, and work on them in chunks of fixed size, so that sums do not depend on the number of threads.
// Written with the vector types of GCC and Clang, since auto-vectorization misses the masks.
#pragma once

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

}  // namespace
