// Applies one-byte masks in one pass over memory. A kept entry has mask byte 1, and minus one is all bits set; a pruned
// one has 0, which clears every bit.

#include <cstdint>

namespace {

template <typename Word>
void mask(Word* __restrict__ w, const int8_t* __restrict__ m, int64_t n, int threads) {
#pragma omp parallel for simd schedule(static) num_threads(threads) if (n > 65536)
    for (int64_t i = 0; i < n; i++) w[i] &= -Word(m[i]);
}

}  // namespace

extern "C" void mask_all(void** w, void** m, const int64_t* n, const int64_t* bits, int64_t count, int threads) {
    for (int64_t t = 0; t < count; t++) {
        const int8_t* kept = static_cast<const int8_t*>(m[t]);
        if (bits[t] == 16) mask(static_cast<int16_t*>(w[t]), kept, n[t], threads);
        else if (bits[t] == 32) mask(static_cast<int32_t*>(w[t]), kept, n[t], threads);
        else mask(static_cast<int64_t*>(w[t]), kept, n[t], threads);
    }
}
