// y = x Wᵀ · scale + bias for one or a few rows x, with W read from memory once, as it is stored.
//
// A decoding step is such products and little else. With one row there is one multiplication a weight, so the product
// lasts as long as W takes to arrive. Two things make it arrive at the speed that memory has:
//
//   - W stays in its stored format on the way: 4, 2 or 1 bytes a weight. It is widened in a register.
//   - What will be needed is asked for early. A processor runs ahead of a load that has not arrived, but only by as many
//     instructions as it can keep in mind; widening a weight takes several, so with short formats that is not far.
//     __builtin_prefetch takes one instruction for 64 bytes and has nothing to wait for.
//
// Otherwise these are plain loops over LANES independent sums, which a compiler turns into vector instructions.

#include <cstdint>
#include <cstring>

struct bfloat16 {  // the upper half of a float
    uint16_t bits;
    operator float() const {
        uint32_t word = uint32_t(bits) << 16;
        float value;
        std::memcpy(&value, &word, 4);
        return value;
    }
};

constexpr long LINE = 64;     // bytes that memory gives at a time
constexpr long AHEAD = 4096;  // bytes between what is used and what is asked for

// The dot products of one row of W with ROWS rows of x, both `in` long. w_row is read once.
template <typename Stored, long ROWS>
static void dot(const Stored* w_row, const float* x, long in, bool prefetch, float* result) {
    constexpr long LANES = ROWS == 1 ? 64 : 32;
    float sums[ROWS][LANES] = {};
    long i = 0;
    for (; i + LANES <= in; i += LANES) {
        if (prefetch)
            for (long byte = 0; byte < LANES * long(sizeof(Stored)); byte += LINE)
                __builtin_prefetch(reinterpret_cast<const char*>(w_row + i) + AHEAD + byte, 0, 2);
        for (long r = 0; r < ROWS; r++)
            for (long lane = 0; lane < LANES; lane++)
                sums[r][lane] += float(w_row[i + lane]) * x[r * in + i + lane];
    }
    for (long r = 0; r < ROWS; r++) {
        for (long half = LANES / 2; half > 0; half /= 2)  // in halves, which are vectors too; one by one would wait
            for (long lane = 0; lane < half; lane++) sums[r][lane] += sums[r][lane + half];
        result[r] = sums[r][0];
        for (long j = i; j < in; j++) result[r] += float(w_row[j]) * x[r * in + j];
    }
}

// W (out, in), scale (out) or none, bias (out) or none, x (rows, in), y (rows, out).
template <typename Stored>
static void product(const Stored* w, const float* scale, const float* bias, const float* x, float* y, long rows,
                    long out, long in, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long o = 0; o < out; o++) {
        float sums[4];
        for (long r = 0; r < rows;) {
            const long left = rows - r, together = left >= 4 ? 4 : left >= 2 ? 2 : 1;
            const bool first = r == 0;
            if (together == 4) dot<Stored, 4>(w + o * in, x + r * in, in, first, sums);
            else if (together == 2) dot<Stored, 2>(w + o * in, x + r * in, in, first, sums);
            else dot<Stored, 1>(w + o * in, x + r * in, in, first, sums);
            for (long k = 0; k < together; k++, r++) {
                const float value = scale ? sums[k] * scale[o] : sums[k];
                y[r * out + o] = bias ? value + bias[o] : value;
            }
        }
    }
}

#define EXPORT(format, Stored)                                                                                    \
    extern "C" void few_rows_##format(const void* w, const float* scale, const float* bias, const float* x,       \
                                      float* y, long rows, long out, long in, int threads) {                      \
        product(static_cast<const Stored*>(w), scale, bias, x, y, rows, out, in, threads);                        \
    }

EXPORT(float32, float)
EXPORT(bfloat16, bfloat16)
EXPORT(int8, int8_t)
