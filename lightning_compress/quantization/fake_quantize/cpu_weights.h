// Weights with a scale for each channel, or one for all: fake quantization, and the scale by their range.
#pragma once

#include "cpu_vectors.h"

namespace {

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

// Keeps a scale positive, finite and a normal number; 0 and NaN become 1 (qparams.py: usable).
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

}  // namespace
