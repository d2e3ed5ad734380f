// The coder of packed.md, compiled: rANS with a 64-bit state over words of 32 bits, frequencies that sum to 2^24.
// Word for word what constriction's AnsCoder gives and takes.
//
// Nothing is taken on trust: a model that is none, or a symbol outside of its model, is answered by a negative number
// before anything is read or written by it. There is no allocation, so that nothing can be thrown through the C interface.

#include <cstdint>

namespace {

constexpr int kPrecision = 24;
constexpr int kBucketBits = 11;
constexpr int kBuckets = 1 << kBucketBits;
constexpr uint32_t kBucketSize = uint32_t(1) << (kPrecision - kBucketBits);
constexpr int kMostSymbols = 256;
constexpr int64_t kTotal = int64_t(1) << kPrecision;
constexpr uint64_t kWord = uint64_t(1) << 32;
constexpr int64_t kNoModel = -1;
constexpr int64_t kNoSymbol = -2;

// Where each symbol's range starts; false unless there are 1 to 256 frequencies, each at least 1, that sum to 2^24.
bool fill_starts(const int64_t* frequencies, int symbols, uint32_t (&starts)[kMostSymbols + 1]) {
    if (symbols < 1 || symbols > kMostSymbols) return false;
    int64_t total = 0;
    for (int k = 0; k < symbols; ++k) {
        starts[k] = uint32_t(total);
        if (frequencies[k] < 1 || frequencies[k] > kTotal - total) return false;
        total += frequencies[k];
    }
    starts[symbols] = uint32_t(total);
    return total == kTotal;
}

}  // namespace

extern "C" {

// Decodes `count` symbols from the end of `left` words; gives how many words are left, or a negative number.
int64_t rans_decode(const uint32_t* words, int64_t left, uint64_t* state, const int64_t* frequencies, int symbols,
                    uint8_t* out, int64_t count) {
    uint32_t starts[kMostSymbols + 1];
    if (!fill_starts(frequencies, symbols, starts)) return kNoModel;
    // The first symbol of each bucket, with its start and frequency in the same eight bytes; the symbol that is meant
    // lies there or a few further. The last start is 2^24, more than any value of 24 bits, so that no search passes the
    // last symbol.
    struct Bucket {
        uint32_t start : kPrecision, symbol : 8;
        uint32_t frequency;
    } buckets[kBuckets];
    for (int bucket = 0, symbol = 0; bucket < kBuckets; ++bucket) {
        while (starts[symbol + 1] <= uint32_t(bucket) * kBucketSize) ++symbol;
        buckets[bucket] = {starts[symbol], uint32_t(symbol), starts[symbol + 1] - starts[symbol]};
    }
    uint64_t x = *state;
    for (int64_t k = 0; k < count; ++k) {
        const uint32_t q = uint32_t(x & (kTotal - 1));
        const Bucket bucket = buckets[q / kBucketSize];
        uint32_t symbol = bucket.symbol, offset = q - bucket.start, frequency = bucket.frequency;
        while (offset >= frequency) {
            offset -= frequency;
            ++symbol;
            frequency = starts[symbol + 1] - starts[symbol];
        }
        x = (x >> kPrecision) * frequency + offset;
        if (x < kWord && left > 0) x = x << 32 | words[--left];
        out[k] = uint8_t(symbol);
    }
    *state = x;
    return left;
}

// Codes symbols from the last to the first; gives how many words were written, at most one a symbol, or a negative
// number.
int64_t rans_encode(uint32_t* words, uint64_t* state, const int64_t* frequencies, int symbols, const uint8_t* in,
                    int64_t count) {
    uint32_t starts[kMostSymbols + 1];
    if (!fill_starts(frequencies, symbols, starts)) return kNoModel;
    uint64_t x = *state;
    int64_t written = 0;
    for (int64_t k = count; k-- > 0;) {
        if (in[k] >= symbols) return kNoSymbol;
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
