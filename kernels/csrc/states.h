// Vectors of states, real or complex, and the exponential of a step: what `selective_scan.cpp`, the
// one file that includes this, computes with.

#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

namespace {

template <typename T>
using Vec = at::vec::Vectorized<T>;

// A vector of states: their real parts and, if P = 2, their imaginary parts.
template <typename T, int P>
struct States {
  Vec<T> part[P];
};

template <typename T, int P>
inline States<T, P> load(const T* from, int64_t distance) {
  States<T, P> x;
  for (int p = 0; p < P; ++p) x.part[p] = Vec<T>::loadu(from + p * distance);
  return x;
}

template <typename T, int P>
inline void store(T* to, int64_t distance, const States<T, P>& x) {
  for (int p = 0; p < P; ++p) x.part[p].store(to + p * distance);
}

template <typename T, int P>
inline States<T, P> zero() {
  States<T, P> x;
  for (int p = 0; p < P; ++p) x.part[p] = Vec<T>(0);
  return x;
}

template <typename T, int P>
inline States<T, P> product(const States<T, P>& a, const States<T, P>& x) {
  const Vec<T> real = a.part[0] * x.part[0];
  if constexpr (P == 1) return {real};
  else return {real - a.part[1] * x.part[1], fmadd(a.part[0], x.part[1], a.part[1] * x.part[0])};
}

// a times the conjugate of x.
template <typename T, int P>
inline States<T, P> product_conj(const States<T, P>& a, const States<T, P>& x) {
  const Vec<T> real = a.part[0] * x.part[0];
  if constexpr (P == 1) return {real};
  else return {fmadd(a.part[1], x.part[1], real), a.part[1] * x.part[0] - a.part[0] * x.part[1]};
}

// s x + sum, with a real s.
template <typename T, int P>
inline States<T, P> add_scaled(Vec<T> s, const States<T, P>& x, const States<T, P>& sum) {
  States<T, P> result;
  for (int p = 0; p < P; ++p) result.part[p] = fmadd(s, x.part[p], sum.part[p]);
  return result;
}

// Add s x to the numbers at `to`, with a real s.
template <typename T, int P>
inline void add_to(T* to, int64_t distance, Vec<T> s, const States<T, P>& x) {
  store<T, P>(to, distance, add_scaled<T, P>(s, x, load<T, P>(to, distance)));
}

// Re(conj(a) x) + sum, lane by lane.
template <typename T, int P>
inline Vec<T> add_dot(const States<T, P>& a, const States<T, P>& x, Vec<T> sum) {
  for (int p = 0; p < P; ++p) sum = fmadd(a.part[p], x.part[p], sum);
  return sum;
}

inline Vec<double> power_of_two(Vec<double> t) { return t.exp2(); }

// 2^r on [-1/2, 1/2]: the polynomial of least relative error, 9.2e-8, that is exact at 0.
inline Vec<float> power_of_fraction(Vec<float> r) {
  Vec<float> p = fmadd(r, Vec<float>(1.326472731e-3f), Vec<float>(9.671512991e-3f));
  p = fmadd(p, r, Vec<float>(5.550733581e-2f));
  p = fmadd(p, r, Vec<float>(2.402224243e-1f));
  p = fmadd(p, r, Vec<float>(6.931470037e-1f));
  return fmadd(p, r, Vec<float>(1.f));
}

// Half the time of the vector library's exp, which is a call; relative error below 2e-7. Zero below
// the smallest normal number (within a factor of sqrt(2)), infinity above the largest, NaN for NaN.
#if defined(CPU_CAPABILITY_AVX512)
inline Vec<float> power_of_two(Vec<float> t) {
  const Vec<float> n = t.round(), p = power_of_fraction(t - n);
  // Numbers that are not normal are zeroed: computing with them is a hundred times slower.
  const __mmask16 kept = _mm512_cmp_ps_mask(n, _mm512_set1_ps(-126.f), _CMP_NLT_UQ);
  return _mm512_maskz_scalef_ps(kept, p, n);
}
#else
inline Vec<float> power_of_two(Vec<float> t) {
  t = at::vec::clamp(t, Vec<float>(-127.f), Vec<float>(128.f));
  const Vec<float> n = t.round(), p = power_of_fraction(t - n);
  // A float's exponent begins at bit 23, so adding n there multiplies by 2^n.
  const auto exponent = at::vec::convert_to_int_of_same_size(n * Vec<float>(1 << 23));
  return at::vec::cast<float>(at::vec::cast<int32_t>(p) + exponent);
}
#endif

// A, its real part turned into powers of two: what `decay` takes.
template <typename T, int P>
inline States<T, P> rates(States<T, P> A) {
  A.part[0] = A.part[0] * Vec<T>(1.4426950408889634);
  return A;
}

// exp(delta A).
template <typename T, int P>
inline States<T, P> decay(Vec<T> delta, const States<T, P>& rate) {
  const Vec<T> size = power_of_two(delta * rate.part[0]);
  if constexpr (P == 1) {
    return {size};
  } else {
    const Vec<T> angle = delta * rate.part[1];
    return {size * angle.cos(), size * angle.sin()};
  }
}

template <typename T>
inline T sum_lanes(const T* lanes) {
  return at::vec::vec_reduce_all<T>([](Vec<T> a, Vec<T> b) { return a + b; }, Vec<T>::loadu(lanes));
}

}  // namespace
