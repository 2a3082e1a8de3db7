// The selective scan on a CPU, forward and backward; `selective_scan.py` says what it computes.
//
// Layout: u, delta, y (b, d, l), any strides. A, B, C hold the states last, as rows of p m numbers:
// m states, a multiple of kPadding, in p = 1 part (real) or p = 2 (real parts, then imaginary).
// A (d, p, m). B and C (d, p, m) if constant in time, (b, l, p, m) if they follow the input. The
// states before the first position and after the last are (b, d, p, m). In the code below these
// numbers are `batch`, `channels`, L, P and M.
// C is conjugated by the caller: Re(C x) is then a dot product, whose gradients need no sign.
//
// A thread computes one channel at a time, block after block of its states. The states of a block
// stay in registers over all l positions. The backward pass recomputes them into a scratch of O(l)
// and then walks from the last position to the first: nothing of size b d l n ever exists.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Unroll.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <type_traits>
#include <utility>

#include "states.h"

namespace {

using at::Tensor;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

constexpr int64_t kPadding = 16;  // the most numbers that a vector holds on any CPU
constexpr int kBlock = 2;         // vectors of states that are computed together

template <typename T>
inline T* data(const Tensor& tensor) {
  return tensor.data_ptr<T>();
}

template <typename T>
inline at::TensorAccessor<T, 3> access(const Tensor& tensor) {
  return tensor.accessor<T, 3>();
}

// One channel of one sequence, or a block of its states. Rows of B and C at successive positions
// are a step apart, 0 for constants.
template <typename T>
struct Channel {
  const T* delta;  // after bias and softplus
  const T* input;  // delta u
  const T *A, *B, *C, *initial;
  int64_t B_step, C_step;

  Channel block(int64_t state) const {
    return {delta, input, A + state, B + state, C + state, initial + state, B_step, C_step};
  }
};

// Add the outputs of K vectors of states to `y`, (L, lanes), and store them as they end in `last`.
template <typename T, int P, int K>
void output_block(const Channel<T>& channel, int64_t L, int64_t M, T* y, T* last) {
  constexpr int64_t V = Vec<T>::size();
  constexpr c10::ForcedUnroll<K> for_each_vector;
  States<T, P> rate[K], x[K];
  for_each_vector([&](auto k) {
    rate[k] = rates<T, P>(load<T, P>(channel.A + k * V, M));
    x[k] = load<T, P>(channel.initial + k * V, M);
  });
  for (int64_t t = 0; t < L; ++t) {
    const Vec<T> delta(channel.delta[t]), input(channel.input[t]);
    const T *const B = channel.B + t * channel.B_step, *const C = channel.C + t * channel.C_step;
    Vec<T> sum = Vec<T>::loadu(y + t * V);
    for_each_vector([&](auto k) {
      x[k] = product<T, P>(decay<T, P>(delta, rate[k]), x[k]);
      x[k] = add_scaled<T, P>(input, load<T, P>(B + k * V, M), x[k]);
      sum = add_dot<T, P>(load<T, P>(C + k * V, M), x[k], sum);
    });
    sum.store(y + t * V);
  }
  for_each_vector([&](auto k) { store<T, P>(last + k * V, M, x[k]); });
}

// What the backward pass of a channel, or a block of it, reads and adds to.
template <typename T>
struct ChannelGradient {
  const T* dy;           // gradient of the sum over states, (L,)
  const T* last;         // gradient of the last state
  T* initial;            // written
  T *A, *B, *C;          // added to; laid out as A, B, C
  T *along_B, *along_A;  // (L, lanes), added to: sums of Re(conj(B) dx) and Re(conj(A) d(delta A))
  T* kept;               // scratch, 2 P kBlock L vectors

  ChannelGradient block(int64_t state) const {
    return {dy,        last + state, initial + state, A + state, B + state,
            C + state, along_B,      along_A,         kept};
  }
};

// Recompute K vectors of states, add to the gradient of C, which needs no more than them, and keep
// exp(delta A) and its product with the state before.
template <typename T, int P, int K>
void recompute_block(const Channel<T>& channel, int64_t L, int64_t M,
                     const ChannelGradient<T>& gradient) {
  constexpr int64_t V = Vec<T>::size();
  constexpr c10::ForcedUnroll<K> for_each_vector;
  States<T, P> rate[K], x[K];
  for_each_vector([&](auto k) {
    rate[k] = rates<T, P>(load<T, P>(channel.A + k * V, M));
    x[k] = load<T, P>(channel.initial + k * V, M);
  });
  for (int64_t t = 0; t < L; ++t) {
    const Vec<T> delta(channel.delta[t]), input(channel.input[t]), dy(gradient.dy[t]);
    const T* const B = channel.B + t * channel.B_step;
    T* const dC = gradient.C + t * channel.C_step;
    T* const kept = gradient.kept + t * 2 * P * K * V;
    for_each_vector([&](auto k) {
      const auto a = decay<T, P>(delta, rate[k]), moved = product<T, P>(a, x[k]);
      store<T, P>(kept + 2 * P * k * V, V, a);
      store<T, P>(kept + (2 * k + 1) * P * V, V, moved);
      x[k] = add_scaled<T, P>(input, load<T, P>(B + k * V, M), moved);
      add_to<T, P>(dC + k * V, M, dy, x[k]);
    });
  }
}

// Differentiate K vectors of states, once they are recomputed.
template <typename T, int P, int K>
void gradient_block(const Channel<T>& channel, int64_t L, int64_t M,
                    const ChannelGradient<T>& gradient) {
  constexpr int64_t V = Vec<T>::size();
  constexpr c10::ForcedUnroll<K> for_each_vector;
  States<T, P> A[K], dA[K], later[K];  // `later`: gradient of x_t by way of x_{t+1}
  for_each_vector([&](auto k) {
    A[k] = load<T, P>(channel.A + k * V, M);
    dA[k] = zero<T, P>();
    later[k] = load<T, P>(gradient.last + k * V, M);
  });
  for (int64_t t = L - 1; t >= 0; --t) {
    const Vec<T> delta(channel.delta[t]), input(channel.input[t]), dy(gradient.dy[t]);
    const T* const kept = gradient.kept + t * 2 * P * K * V;
    const int64_t B_row = t * channel.B_step, C_row = t * channel.C_step;
    Vec<T> along_B = Vec<T>::loadu(gradient.along_B + t * V);
    Vec<T> along_A = Vec<T>::loadu(gradient.along_A + t * V);
    for_each_vector([&](auto k) {
      const auto a = load<T, P>(kept + 2 * P * k * V, V);
      const auto moved = load<T, P>(kept + (2 * k + 1) * P * V, V);
      const auto B = load<T, P>(channel.B + B_row + k * V, M);
      const auto C = load<T, P>(channel.C + C_row + k * V, M);
      const auto dx = add_scaled<T, P>(dy, C, later[k]);
      const auto d_exponent = product_conj<T, P>(dx, moved);
      along_B = add_dot<T, P>(B, dx, along_B);
      along_A = add_dot<T, P>(A[k], d_exponent, along_A);
      dA[k] = add_scaled<T, P>(delta, d_exponent, dA[k]);
      later[k] = product_conj<T, P>(dx, a);
      add_to<T, P>(gradient.B + B_row + k * V, M, input, dx);
    });
    along_B.store(gradient.along_B + t * V);
    along_A.store(gradient.along_A + t * V);
  }
  for_each_vector([&](auto k) {
    add_to<T, P>(gradient.A + k * V, M, Vec<T>(1), dA[k]);
    store<T, P>(gradient.initial + k * V, M, later[k]);
  });
}

// Call `block(state, K)` for the blocks that make up M states, K a compile-time constant.
template <typename T, typename F>
void for_each_block(int64_t M, F block) {
  constexpr int64_t V = Vec<T>::size();
  static_assert(kPadding % V == 0);
  int64_t state = 0;
  for (; state + kBlock * V <= M; state += kBlock * V)
    block(state, std::integral_constant<int, kBlock>());
  for (; state < M; state += V) block(state, std::integral_constant<int, 1>());
}

// The operators' arguments, and what is computed with them.
template <typename T, int P>
class Scan {
 public:
  Scan(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
       const Tensor& D, const Tensor& bias, const Tensor& initial, bool softplus)
      : u_tensor(u), delta_tensor(delta), A(A.contiguous()), B(B.contiguous()), C(C.contiguous()),
        D(D.contiguous()), bias(bias.contiguous()), initial(initial.contiguous()),
        softplus(softplus), u(access<T>(u)), delta(access<T>(delta)), batch(u.size(0)),
        channels(u.size(1)), L(u.size(2)), M(A.size(2)), padded_L(at::divup(u.size(2), kPadding) * kPadding) {}

  // The output and the last states.
  std::tuple<Tensor, Tensor> forward() const {
    const Tensor y_tensor = at::empty_like(u_tensor), last = at::empty_like(initial);
    auto y = access<T>(y_tensor);
    at::parallel_for(0, batch * channels, 1, [&](int64_t begin, int64_t end) {
      const Tensor scratch = at::empty({padded_L * (3 + V)}, u_tensor.options());
      T* const lanes = data<T>(scratch) + 3 * padded_L;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / channels, d = i % channels;
        const Channel<T> channel = prepare(b, d, data<T>(scratch));
        std::fill_n(lanes, L * V, T(0));
        for_each_block<T>(M, [&](int64_t state, auto K) {
          T* const end = data<T>(last) + i * P * M + state;
          output_block<T, P, K>(channel.block(state), L, M, lanes, end);
        });
        const T skip = data<T>(D)[d];
        for (int64_t t = 0; t < L; ++t)
          y[b][d][t] = P * sum_lanes(lanes + t * V) + skip * u[b][d][t];
      }
    });
    return {y_tensor, last};
  }

  // Gradients of u, delta, A, B, C, D, the bias and the initial states.
  Gradients backward(const Tensor& dy, const Tensor& d_last) const {
    // What several threads add to, each adds to a part of its own, and the parts are summed in
    // order: the last bits depend on the number of threads, and not on their timing.
    const int64_t threads = at::get_num_threads();
    const bool even = batch % threads == 0 || batch >= 8 * threads;
    const int64_t groups = even ? 1 : std::min(channels, at::divup(8 * threads, batch));
    const Sums sums{at::empty_like(u_tensor),
                    at::empty_like(delta_tensor),
                    parts_of(A, threads),
                    parts_of(B, is_constant(B) ? threads : groups),
                    parts_of(C, is_constant(C) ? threads : groups),
                    parts_of(D, threads),
                    parts_of(bias, threads),
                    at::empty_like(initial)};
    at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      const Tensor scratch = at::empty({padded_L * kScratchRows}, u_tensor.options());
      for (int64_t thread = begin; thread < end; ++thread) {
        const int64_t last = (thread + 1) * batch * groups / threads;
        for (int64_t item = thread * batch * groups / threads; item < last; ++item) {
          const int64_t b = item / groups, group = item % groups;
          const int64_t last_d = (group + 1) * channels / groups;
          for (int64_t d = group * channels / groups; d < last_d; ++d)
            differentiate(b, d, thread, group, dy, d_last, sums, data<T>(scratch));
        }
      }
    });
    return {sums.u,        sums.delta,    total(sums.A),    total(sums.B),
            total(sums.C), total(sums.D), total(sums.bias), sums.initial};
  }

 private:
  static constexpr int64_t V = Vec<T>::size();
  static constexpr int64_t kScratchRows = 5 + 2 * V + 2 * P * kBlock * V;

  struct Sums {
    Tensor u, delta, A, B, C, D, bias, initial;
  };

  static Tensor parts_of(const Tensor& whole, int64_t parts) {
    auto sizes = whole.sizes().vec();
    sizes.insert(sizes.begin(), parts);
    return at::zeros(sizes, whole.options());
  }

  static Tensor total(const Tensor& parts) {
    return parts.size(0) == 1 ? parts.squeeze(0) : parts.sum(0);
  }

  static bool is_constant(const Tensor& rows) { return rows.dim() == 3; }

  // Fill three rows of scratch: delta before softplus, delta, delta u.
  Channel<T> prepare(int64_t b, int64_t d, T* raw) const {
    T *const step = raw + padded_L, *const input = step + padded_L;
    const T shift = data<T>(bias)[d];
    for (int64_t t = 0; t < L; ++t) raw[t] = delta[b][d][t] + shift;
    const auto softplus_of = [](Vec<T> x) {
      return Vec<T>::blendv(x.exp().log1p(), x, x > Vec<T>(20));  // the threshold of PyTorch's own
    };
    if (softplus) at::vec::map<T>(softplus_of, step, raw, L);
    else std::copy_n(raw, L, step);
    for (int64_t t = 0; t < L; ++t) input[t] = step[t] * u[b][d][t];
    const auto start = [&](const Tensor& rows) {
      return data<T>(rows) + (is_constant(rows) ? d : b * L) * P * M;
    };
    const T* const before = data<T>(initial) + (b * channels + d) * P * M;
    return {step, input, start(A), start(B), start(C), before, is_constant(B) ? 0 : P * M,
            is_constant(C) ? 0 : P * M};
  }

  void differentiate(int64_t b, int64_t d, int64_t thread, int64_t group, const Tensor& dy_tensor,
                     const Tensor& d_last, const Sums& sums, T* raw) const {
    const Channel<T> channel = prepare(b, d, raw);
    T *const slope = raw + 3 * padded_L, *const scaled_dy = slope + padded_L;
    T *const along_B = scaled_dy + padded_L, *const along_A = along_B + padded_L * V;
    T* const kept = along_A + padded_L * V;
    const auto dy = access<T>(dy_tensor);
    for (int64_t t = 0; t < L; ++t) scaled_dy[t] = P * dy[b][d][t];
    std::fill_n(along_B, 2 * padded_L * V, T(0));
    const auto start = [&](const Tensor& parts, const Tensor& rows) {
      const int64_t row = is_constant(rows) ? thread * channels + d : (group * batch + b) * L;
      return data<T>(parts) + row * P * M;
    };
    const int64_t states = (b * channels + d) * P * M;
    const ChannelGradient<T> gradient{scaled_dy,
                                      data<T>(d_last) + states,
                                      data<T>(sums.initial) + states,
                                      start(sums.A, A),
                                      start(sums.B, B),
                                      start(sums.C, C),
                                      along_B,
                                      along_A,
                                      kept};
    for_each_block<T>(M, [&](int64_t state, auto K) {
      recompute_block<T, P, K>(channel.block(state), L, M, gradient.block(state));
      gradient_block<T, P, K>(channel.block(state), L, M, gradient.block(state));
    });
    const auto sigmoid = [](Vec<T> x) { return Vec<T>(1) / (Vec<T>(1) + x.neg().exp()); };
    if (softplus) at::vec::map<T>(sigmoid, slope, raw, L);
    else std::fill_n(slope, L, T(1));
    auto du = access<T>(sums.u), d_delta = access<T>(sums.delta);
    const T skip = data<T>(D)[d];
    T d_skip = 0, d_shift = 0;
    for (int64_t t = 0; t < L; ++t) {
      const T d_input = sum_lanes(along_B + t * V);
      du[b][d][t] = channel.delta[t] * d_input + skip * dy[b][d][t];
      const T d_raw = slope[t] * (u[b][d][t] * d_input + sum_lanes(along_A + t * V));
      d_delta[b][d][t] = d_raw;
      d_shift += d_raw;
      d_skip += dy[b][d][t] * u[b][d][t];
    }
    data<T>(sums.D)[thread * channels + d] += d_skip;
    data<T>(sums.bias)[thread * channels + d] += d_shift;
  }

  const Tensor u_tensor, delta_tensor, A, B, C, D, bias, initial;
  const bool softplus;
  const at::TensorAccessor<T, 3> u, delta;
  const int64_t batch, channels, L, M, padded_L;
};

void check(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
           const Tensor& D, const Tensor& bias, const Tensor& initial) {
  TORCH_CHECK(u.dim() == 3 && delta.sizes() == u.sizes(), "u and delta must be (b, d, l)");
  TORCH_CHECK(A.dim() == 3 && A.size(0) == u.size(1), "A must be (d, p, m)");
  TORCH_CHECK(A.size(1) <= 2 && A.size(2) % kPadding == 0, "p is 1 or 2, m a multiple of 16");
  const at::DimVector following{u.size(0), u.size(2), A.size(1), A.size(2)};
  for (const Tensor& rows : {B, C})
    TORCH_CHECK(rows.sizes() == A.sizes() || rows.sizes() == following,
                "B and C must be (d, p, m) or (b, l, p, m)");
  for (const Tensor& vector : {D, bias})
    TORCH_CHECK(vector.dim() == 1 && vector.size(0) == u.size(1), "D and the bias must be (d,)");
  const at::DimVector state{u.size(0), u.size(1), A.size(1), A.size(2)};
  TORCH_CHECK(initial.sizes() == state, "the initial state must be (b, d, p, m)");
  for (const Tensor& other : {delta, A, B, C, D, bias, initial})
    TORCH_CHECK(other.scalar_type() == u.scalar_type(), "all arguments must have one dtype");
}

// Call `run` with a Scan of the arguments' dtype and number of parts.
template <typename F>
auto with_scan(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
               const Tensor& C, const Tensor& D, const Tensor& bias, const Tensor& initial,
               bool softplus, F run) {
  check(u, delta, A, B, C, D, bias, initial);
  return AT_DISPATCH_FLOATING_TYPES(u.scalar_type(), "selective_scan", [&] {
    if (A.size(1) == 1)
      return run(Scan<scalar_t, 1>(u, delta, A, B, C, D, bias, initial, softplus));
    return run(Scan<scalar_t, 2>(u, delta, A, B, C, D, bias, initial, softplus));
  });
}

std::tuple<Tensor, Tensor> scan(const Tensor& u, const Tensor& delta, const Tensor& A,
                                const Tensor& B, const Tensor& C, const Tensor& D,
                                const Tensor& bias, const Tensor& initial, bool softplus) {
  return with_scan(u, delta, A, B, C, D, bias, initial, softplus,
                   [](const auto& scan) { return scan.forward(); });
}

Gradients scan_backward(const Tensor& dy, const Tensor& d_last, const Tensor& u,
                        const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
                        const Tensor& D, const Tensor& bias, const Tensor& initial, bool softplus) {
  for (const auto& [gradient, tensor] : {std::pair(dy, u), std::pair(d_last, initial)})
    TORCH_CHECK(gradient.sizes() == tensor.sizes() &&
                    gradient.scalar_type() == tensor.scalar_type(),
                "dy must be as u, d_last as the initial state");
  return with_scan(u, delta, A, B, C, D, bias, initial, softplus,
                   [&](const auto& scan) { return scan.backward(dy, d_last.contiguous()); });
}

}  // namespace

TORCH_LIBRARY(selective_scan, library) {
  library.def(
      "scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor delta_bias, "
      "Tensor initial, bool delta_softplus) -> (Tensor, Tensor)");
  library.def(
      "scan_backward(Tensor dy, Tensor d_last, Tensor u, Tensor delta, Tensor A, Tensor B, "
      "Tensor C, Tensor D, Tensor delta_bias, Tensor initial, bool delta_softplus) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(selective_scan, CPU, library) {
  library.impl("scan", scan);
  library.impl("scan_backward", scan_backward);
}
