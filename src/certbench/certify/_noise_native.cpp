// The CPU kernel of philox-v1: counters to noise, or to a network's input, in one pass.
//
// Every line is a float32 operation that IEEE 754 rounds in one way (built without contraction), in
// the order of the torch and Triton versions: all of them give the same bits.
// Loops are plain, so that the compiler vectorises them for the processor that it builds for.
#include <cstdint>
#include <cstring>
#include <cmath>

namespace {

constexpr int LANES = 64;  // counters per step: 256 values

inline float as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline uint32_t as_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

struct Words {
    alignas(64) uint32_t w[4][LANES];
};

void philox(uint32_t first, uint32_t sample, uint32_t image, uint32_t stream, const uint32_t* keys,
            Words& out) {
    for (int i = 0; i < LANES; ++i) {
        uint32_t c0 = first + uint32_t(i), c1 = sample, c2 = image, c3 = stream;
#pragma GCC unroll 10
        for (int round = 0; round < 10; ++round) {
            const uint64_t p0 = uint64_t(c0) * 0xD2511F53u, p1 = uint64_t(c2) * 0xCD9E8D57u;
            c0 = uint32_t(p1 >> 32) ^ c1 ^ keys[2 * round];
            c2 = uint32_t(p0 >> 32) ^ c3 ^ keys[2 * round + 1];
            c1 = uint32_t(p1);
            c3 = uint32_t(p0);
        }
        out.w[0][i] = c0;
        out.w[1][i] = c1;
        out.w[2][i] = c2;
        out.w[3][i] = c3;
    }
}

// Two normals, times scale, of two words each.
void normals(const uint32_t* first, const uint32_t* second, float scale, float* z0, float* z1) {
    for (int i = 0; i < LANES; ++i) {
        // u = (w + 1/2) / 2^32; beyond one half as 1 - p, the rounding of which is carried along.
        const uint32_t upper = uint32_t(int32_t(first[i]) >> 31);
        const float p = (float(int32_t(first[i] ^ upper)) + 0.5f) * 0x1p-32f;
        const float v = 1.0f - p;
        const float left = (1.0f - v) - p;
        const uint32_t bits = (as_bits(p) & ~upper) | (as_bits(v) & upper);
        const float carried = as_float(as_bits(left) & upper);
        // ln(2^k (1 + f)), 1 + f between the roots of 1/2 and 2.
        const int32_t k = int32_t(bits - 0x3F3504F3u) >> 23;
        const float f = as_float(bits - (uint32_t(k) << 23)) - 1.0f;
        float s = f * 0x1.1457a8p-4f + -0x1.de3c16p-4f;
        s = s * f + 0x1.e6f06ap-4f;
        s = s * f + -0x1.fc2208p-4f;
        s = s * f + 0x1.233768p-3f;
        s = s * f + -0x1.555c4ep-3f;
        s = s * f + 0x1.99a4b6p-3f;
        s = s * f + -0x1.000006p-2f;
        s = s * f + 0x1.555548p-2f;
        const float square = f * f;
        float rest = s * f * square + square * -0.5f;
        rest = rest + float(k) * -0x1.bd0106p-13f;
        rest = rest + carried;
        const float logarithm = float(k) * 0x1.63p-1f + (f + rest);
        const float radius = std::sqrt(logarithm * -2.0f);
        // The angle 2 pi u: quarter turns q, and what is left in [-pi/4, pi/4).
        const int32_t q = int32_t(second[i] + 0x20000000u) >> 30;
        const float x = (float(int32_t(second[i] - (uint32_t(q) << 30))) + 0.5f) * 0x1.921fb6p-30f;
        const float z = x * x;
        float sine = z * -0x1.9aca52p-13f + 0x1.110c2ap-7f;
        sine = sine * z + -0x1.555552p-3f;
        sine = sine * z * x + x;
        float cosine = z * 0x1.9bd908p-16f + -0x1.6c12d4p-10f;
        cosine = cosine * z + 0x1.555554p-5f;
        cosine = cosine * z * z + (z * -0.5f + 1.0f);
        const uint32_t odd = 0u - (uint32_t(q) & 1u);
        const uint32_t a = as_bits(cosine), b = as_bits(sine), swap = (a ^ b) & odd;
        const uint32_t flip0 = (uint32_t(q) + 1u) & 2u, flip1 = uint32_t(q) & 2u;
        z0[i] = radius * as_float(a ^ swap ^ (flip0 << 30)) * scale;
        z1[i] = radius * as_float(b ^ swap ^ (flip1 << 30)) * scale;
    }
}

// 256 values in order, from the counters first .. first + 63.
void tile(int normal, const uint32_t* keys, uint32_t stream, uint32_t image, uint32_t sample,
          uint32_t first, float scale, float* out) {
    Words words;
    alignas(64) float z[4][LANES];
    philox(first, sample, image, stream, keys, words);
    if (normal) {
        normals(words.w[0], words.w[1], scale, z[0], z[1]);
        normals(words.w[2], words.w[3], scale, z[2], z[3]);
    } else {
        for (int j = 0; j < 4; ++j)
            for (int i = 0; i < LANES; ++i) {
                const float centred = float(int32_t(words.w[j][i] >> 8) - 0x800000) + 0.5f;
                z[j][i] = centred * 0x1p-23f * scale;
            }
    }
    for (int i = 0; i < LANES; ++i)
        for (int j = 0; j < 4; ++j) out[4 * i + j] = z[j][i];
}

void row(int normal, const uint32_t* keys, uint32_t stream, uint32_t image, uint32_t sample,
         float scale, int64_t elements, float* out) {
    int64_t start = 0;
    for (; start + 4 * LANES <= elements; start += 4 * LANES)
        tile(normal, keys, stream, image, sample, uint32_t(start / 4), scale, out + start);
    if (start < elements) {
        alignas(64) float last[4 * LANES];
        tile(normal, keys, stream, image, sample, uint32_t(start / 4), scale, last);
        std::memcpy(out + start, last, size_t(elements - start) * sizeof(float));
    }
}

// ((picture + noise) - shift) * factor of one row, to [plane, CHANNELS].
template <int CHANNELS>
void interleave(const float* picture, const float* noise, const float* shift, const float* factor,
                int64_t plane, float* out) {
    for (int64_t i = 0; i < plane; ++i)
        for (int c = 0; c < CHANNELS; ++c) {
            const int64_t from = c * plane + i;
            out[CHANNELS * i + c] = ((picture[from] + noise[from]) - shift[c]) * factor[c];
        }
}

}  // namespace

extern "C" {

// Rows [begin, end) of out, [rows, elements].
void certbench_fill(int normal, const uint32_t* keys, uint32_t stream, const int64_t* images,
                    const int64_t* samples, float scale, int64_t elements, int64_t begin,
                    int64_t end, float* out) {
    for (int64_t r = begin; r < end; ++r)
        row(normal, keys, stream, uint32_t(images[r]), uint32_t(samples[r]), scale, elements,
            out + r * elements);
}

// Rows [begin, end) of ((pictures[slots] + noise) - shift) * factor, pictures [M, C, plane]. out is
// [rows, plane, C] (last) or [rows, C, plane]; shift and factor [C]; buffer holds one row.
void certbench_add(int normal, const uint32_t* keys, uint32_t stream, const int64_t* images,
                   const int64_t* samples, float scale, int64_t channels, int64_t plane,
                   const float* pictures, const int64_t* slots, const float* shift,
                   const float* factor, int last, int64_t begin, int64_t end, float* buffer,
                   float* out) {
    const int64_t elements = channels * plane;
    for (int64_t r = begin; r < end; ++r) {
        const float* picture = pictures + slots[r] * elements;
        float* place = out + r * elements;
        row(normal, keys, stream, uint32_t(images[r]), uint32_t(samples[r]), scale, elements,
            buffer);
        if (last && channels == 3) {
            interleave<3>(picture, buffer, shift, factor, plane, place);
            continue;
        }
        const int64_t step = last ? channels : 1;
        for (int64_t c = 0; c < channels; ++c) {
            const float less = shift[c], times = factor[c];
            float* to = place + (last ? c : c * plane);
            for (int64_t i = 0; i < plane; ++i) {
                const int64_t from = c * plane + i;
                to[step * i] = ((picture[from] + buffer[from]) - less) * times;
            }
        }
    }
}
}
