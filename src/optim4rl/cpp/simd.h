// Vectors of floats and the functions of them that the kernels need.
//
// Everything is in an unnamed namespace and forced inline: each instruction set gets its own copy.
// All functions carry a NaN through. Comparisons are written so that they become min and max
// instructions, whose second operand survives when either is a NaN.

#pragma once

#include <cstdint>

#define FORCE_INLINE inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kTile = 4;  // vectors side by side in one register tile
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
constexpr int kTile = 2;  // half as many registers
#elif defined(__x86_64__)
constexpr int kVectorBytes = 16;
constexpr int kTile = 2;
#else
constexpr int kVectorBytes = 16;
constexpr int kTile = 4;
#endif
constexpr int kLanes = kVectorBytes / sizeof(float);

typedef float Vec __attribute__((vector_size(kVectorBytes), may_alias));
typedef int32_t IntVec __attribute__((vector_size(kVectorBytes), may_alias));

// All rows of a workspace are aligned.
FORCE_INLINE Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
FORCE_INLINE void store(float* p, Vec x) { *reinterpret_cast<Vec*>(p) = x; }
// Rows of operands and results may lie anywhere.
FORCE_INLINE Vec load_anywhere(const float* p) {
  Vec x;
  __builtin_memcpy(&x, p, kVectorBytes);
  return x;
}
FORCE_INLINE void store_anywhere(float* p, Vec x) { __builtin_memcpy(p, &x, kVectorBytes); }
FORCE_INLINE Vec splat(float x) { return x - Vec{}; }

// A constant that the compiler cannot see. Comparisons with constants that it sees are turned around
// on the way and are then no longer recognised as min and max instructions.
FORCE_INLINE Vec hidden_constant(float x) {
#if defined(__x86_64__)
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#endif
  return splat(x);
}

FORCE_INLINE Vec clamp(Vec x, float low, float high) {
  const Vec l = hidden_constant(low), h = hidden_constant(high);
  x = l > x ? l : x;
  return h < x ? h : x;
}

FORCE_INLINE Vec relu(Vec x) {
  const Vec zero = hidden_constant(0.0f);
  return zero > x ? zero : x;
}

FORCE_INLINE Vec absolute(Vec x) { return (Vec)((IntVec)x & 0x7fffffff); }

// -1, 0 or 1.
FORCE_INLINE Vec sign(Vec x) {
  const Vec one = splat(1.0f);
  return x > 0.0f ? one : (x < 0.0f ? -one : x);
}

FORCE_INLINE Vec square_root(Vec x) {
  for (int lane = 0; lane < kLanes; ++lane) x[lane] = __builtin_sqrtf(x[lane]);
  return x;
}

// Added to a float, this rounds it to a whole number and leaves that number, plus the bias of a
// float's exponent, in the lowest bits.
constexpr float kRounder = 12582912.0f + 127.0f;

// 2^x = scale * (1 + tail) for |x| < 120, |tail| <= 1/2: kept apart so that 2^x - 1 loses nothing.
// Several vectors at once, step by step: one alone would wait for each result.
template <int N>
FORCE_INLINE void power_of_two(const Vec (&x)[N], Vec (&scale)[N], Vec (&tail)[N]) {
  Vec f[N];
  for (int i = 0; i < N; ++i) scale[i] = x[i] + kRounder;
  for (int i = 0; i < N; ++i) f[i] = scale[i] - kRounder;
  for (int i = 0; i < N; ++i) f[i] = x[i] - f[i];
  for (int i = 0; i < N; ++i) scale[i] = (Vec)((IntVec)scale[i] << 23);
  // (2^f - 1) / f on [-1/2, 1/2], minimax: 2^f to 9e-8.
  constexpr float kSeries[] = {9.671512870e-3f, 5.550733754e-2f, 2.402224208e-1f, 6.931469776e-1f};
  for (int i = 0; i < N; ++i) tail[i] = splat(1.326472389e-3f);
  for (const float coefficient : kSeries)
    for (int i = 0; i < N; ++i) tail[i] = tail[i] * f[i] + coefficient;
  for (int i = 0; i < N; ++i) tail[i] *= f[i];
}

// e^x for |x| < 80.
FORCE_INLINE Vec exponential(Vec x) {
  const Vec shifted = x * 1.442695041f + kRounder;
  const Vec whole = shifted - kRounder;
  // log 2 in two parts: the products with the first are exact.
  const Vec f = (x - whole * 0.693359375f) - whole * -2.121944400e-4f;
  Vec q = f * 8.290312650e-3f + 4.189793029e-2f;
  q = q * f + 1.666763623e-1f;
  q = q * f + 4.999914952e-1f;
  q = q * f + 9.999997072e-1f;
  return (q * f + 1.0f) * (Vec)((IntVec)shifted << 23);
}

// log x for x >= 0; numbers below the least normal one count as zero.
FORCE_INLINE Vec logarithm(Vec x) {
  // x = 2^e * (1 + f) with 1 + f in [2/3, 4/3).
  const IntVec exponent = ((IntVec)x - 0x3f2aaaab) & (int32_t)0xff800000;
  const Vec f = (Vec)((IntVec)x - exponent) - 1.0f;
  const Vec e = __builtin_convertvector(exponent >> 23, Vec);
  // (log(1 + f) - f + f^2 / 2) / f^3, minimax: the logarithm to 4e-8.
  Vec q = f * 1.382013550e-1f - 1.512219036e-1f;
  q = q * f + 1.404232840e-1f;
  q = q * f - 1.647232500e-1f;
  q = q * f + 2.000791851e-1f;
  q = q * f - 2.500423782e-1f;
  q = q * f + 3.333326603e-1f;
  const Vec series = (q * f - 0.5f) * (f * f) + f;
  const Vec infinity = splat(__builtin_inff());
  Vec y = e * 0.693147181f + series;
  y = x < 1.17549435e-38f ? -infinity : y;
  return x < infinity ? y : x;  // +inf and NaN are their own logarithms
}

FORCE_INLINE float sum(Vec x) {
  float total = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) total += x[lane];
  return total;
}

}  // namespace
