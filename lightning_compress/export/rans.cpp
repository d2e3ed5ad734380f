// The coder of packed.md, compiled: rANS with a 64-bit state over words of 32 bits, frequencies that sum to 2^24.
// Word for word what constriction's AnsCoder gives and takes.

#include <cstdint>
#include <vector>

namespace {

constexpr int kPrecision = 24;
constexpr int kBucketBits = 12;
constexpr uint64_t kTotal = uint64_t(1) << kPrecision;
constexpr uint64_t kWord = uint64_t(1) << 32;

std::vector<uint32_t> starts_of(const int64_t* frequencies, int symbols) {
    std::vector<uint32_t> starts(symbols + 1, 0);
    for (int k = 0; k < symbols; ++k) starts[k + 1] = starts[k] + uint32_t(frequencies[k]);
    return starts;
}

}  // namespace

extern "C" {

// Decodes symbols; gives how many words are left.
int64_t rans_decode(const uint32_t* words, int64_t left, uint64_t* state, const int64_t* frequencies, int symbols,
                    uint8_t* out, int64_t count) {
    const std::vector<uint32_t> starts = starts_of(frequencies, symbols);
    // The first symbol of each bucket; the one that is meant lies there or a few further.
    std::vector<uint8_t> first(uint64_t(1) << kBucketBits);
    for (uint64_t bucket = 0, symbol = 0; bucket < first.size(); ++bucket) {
        while (starts[symbol + 1] <= bucket << (kPrecision - kBucketBits)) ++symbol;
        first[bucket] = uint8_t(symbol);
    }
    uint64_t x = *state;
    for (int64_t k = 0; k < count; ++k) {
        const uint32_t q = uint32_t(x & (kTotal - 1));
        int symbol = first[q >> (kPrecision - kBucketBits)];
        while (q >= starts[symbol + 1]) ++symbol;
        x = (x >> kPrecision) * (starts[symbol + 1] - starts[symbol]) + (q - starts[symbol]);
        if (x < kWord && left > 0) x = x << 32 | words[--left];
        out[k] = uint8_t(symbol);
    }
    *state = x;
    return left;
}

// Codes symbols from the last to the first; gives how many words were written, at most one a symbol.
int64_t rans_encode(uint32_t* words, uint64_t* state, const int64_t* frequencies, int symbols, const uint8_t* in,
                    int64_t count) {
    const std::vector<uint32_t> starts = starts_of(frequencies, symbols);
    uint64_t x = *state;
    int64_t written = 0;
    for (int64_t k = count; k-- > 0;) {
        const uint64_t start = starts[in[k]], frequency = starts[in[k] + 1] - start;
        if (x >> (64 - kPrecision) >= frequency) {
            words[written++] = uint32_t(x);
            x >>= 32;
        }
        x = (x / frequency << kPrecision) + start + x % frequency;
    }
    *state = x;
    return written;
}

}  // extern "C"
