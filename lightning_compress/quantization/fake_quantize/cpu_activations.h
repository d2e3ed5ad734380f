// Activations with a scale and a zero point for the whole tensor: fake quantization, its gradient, and the range.
#pragma once

#include "cpu_vectors.h"

namespace {

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

}  // namespace
