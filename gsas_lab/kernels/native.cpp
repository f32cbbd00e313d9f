// The sampled losses in one pass over each row: scores, slopes and all gradients. See native.py.
//
// Vectors are 16 floats wide in the compiler's own vector types: one AVX-512 register, two of AVX2,
// four of NEON, whichever the machine has. Built without -ffast-math: the rounding in exp needs it.
#include <algorithm>
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

typedef float lanes __attribute__((vector_size(64), aligned(4)));
typedef int32_t mask __attribute__((vector_size(64), aligned(4)));
constexpr int W = 16;

static inline lanes load(const float* p) { return *(const lanes*)p; }
static inline void store(float* p, lanes v) { *(lanes*)p = v; }
static inline lanes all(float x) { return lanes{} + x; }
static inline lanes pick(mask m, lanes yes, lanes no) {
  return (lanes)(((mask)yes & m) | ((mask)no & ~m));
}
static inline lanes maximum(lanes a, lanes b) { return pick(a < b, b, a); }  // a NaN in a stays

// Sums of the halves, quarters, pairs of two vectors: four levels turn 16 vectors into their sums.
#define SHUFFLE __builtin_shufflevector
static inline lanes halves(lanes a, lanes b) {
  return SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
         SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}
static inline lanes quarters(lanes a, lanes b) {
  return SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
         SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}
static inline lanes fours(lanes a, lanes b) {
  return SHUFFLE(a, b, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
         SHUFFLE(a, b, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
}
static inline lanes pairs(lanes a, lanes b) {
  return SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
static inline float sum(lanes v) { return pairs(fours(quarters(halves(v, v), v), v), v)[0]; }

// e^x for x ≤ 0: 2^n · e^r with |r| ≤ ln(2)/2; 1.7e-38 below −87.
static inline lanes exp_of_negative(lanes x) {
  const float shift = 12582912.0f;  // 1.5 · 2^23: adding it rounds to an integer
  x = maximum(x, all(-87.0f));
  lanes n = x * 1.44269504088896341f + shift;
  const mask power = (mask)n << 23;
  n -= shift;
  const lanes r = x - n * 0.693145751953125f - n * 1.42860682030941723e-6f;
  lanes p = all(1.0f / 720);
  for (float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = p * r + c;
  return (lanes)((mask)p + power);
}

// log(1 + e) = 2 atanh(e / (2 + e)) for 0 ≤ e ≤ 1, exact to rounding for the smallest e too.
static inline lanes log_one_plus(lanes e) {
  const lanes s = e / (e + 2.0f), q = s * s;
  lanes p = all(1.0f / 15);
  for (float c : {1.0f / 13, 1.0f / 11, 1.0f / 9, 1.0f / 7, 1.0f / 5, 1.0f / 3, 1.0f})
    p = p * q + c;
  return 2.0f * s * p;
}

// torch's own OpenMP threads, where they are GNU's: they spin for milliseconds after each of torch's
// operations, and threads of ours beside them would wait that long for a core.
struct Pool {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel, or null
  int (*number)();                                               // omp_get_thread_num
  int (*size)();                                                 // omp_get_num_threads
};

// Calls work(0) … work(threads − 1) at the same time.
template <class F>
static void together(const Pool& pool, int64_t threads, F& work) {
  struct Team {
    const Pool& pool;
    int64_t threads;
    F& work;
    std::atomic<bool> short_of_threads{false};
  } team{pool, threads, work};
  if (threads > 1 && pool.parallel) {
    pool.parallel(
        [](void* given) {
          Team& t = *(Team*)given;
          if (t.pool.size() == t.threads) t.work(t.pool.number());
          else t.short_of_threads = true;  // a limit was set: nobody works
        },
        &team, threads, 0);
    if (!team.short_of_threads) return;
  }
  std::vector<std::thread> others;
  for (int64_t t = 1; t < threads; t++) others.emplace_back(std::ref(work), t);
  work(0);
  for (auto& other : others) other.join();
}

struct Work {  // as native.py's _Work
  const float *hidden, *table;          // (positions, d), (rows, d)
  const int64_t *positives, *negatives; // (positions,), (positions, k)
  float *d_hidden, *d_table;            // written whole
  int64_t positions, k, rows, chunk, threads, softmax;
  float beta, bias, scale;              // scale: of the loss and of every gradient
  double loss, d_bias;                  // results
  Pool pool;
};

struct Pair {
  int32_t position;
  float slope;
};

// out[i] = hidden · table[item[i]] + bias for n items, n a multiple of 16.
template <int V>
static void score(const float* hidden, const Work& w, const int32_t* item, int n, float* out) {
  lanes h[V];
  for (int j = 0; j < V; j++) h[j] = load(hidden + j * W);
  for (int i = 0; i < n; i += W) {
    lanes two[W / 2];
    for (int q = 0; q < W / 2; q++) {
      const float* left = w.table + (int64_t)item[i + 2 * q] * V * W;
      const float* right = w.table + (int64_t)item[i + 2 * q + 1] * V * W;
      lanes a = h[0] * load(left), b = h[0] * load(right);
      for (int j = 1; j < V; j++) {
        a += h[j] * load(left + j * W);
        b += h[j] * load(right + j * W);
      }
      two[q] = halves(a, b);
    }
    const lanes a = fours(quarters(two[0], two[1]), quarters(two[2], two[3]));
    const lanes b = fours(quarters(two[4], two[5]), quarters(two[6], two[7]));
    store(out + i, pairs(a, b) + w.bias);
  }
}

// The first n of 16 lanes.
static inline mask first(int64_t n) {
  mask lane;
  for (int i = 0; i < W; i++) lane[i] = i;
  return lane < (int32_t)std::min<int64_t>(n, W);
}

// gBCE: scores become slopes in place; the loss is returned. The positive is the first of a row.
static lanes gbce(float* s, int64_t n, bool has_positive, const Work& w) {
  const float share = 1.0f / (w.k + 1);
  lanes loss{};
  for (int64_t i = 0; i < n; i += W) {
    const lanes x = load(s + i), e = exp_of_negative(maximum(x, -x) * -1.0f);
    const lanes tail = log_one_plus(e), small = e / (1.0f + e), large = 1.0f / (1.0f + e);
    lanes part = maximum(x, lanes{}) + tail;  // softplus(x)
    lanes slope = pick(x < 0.0f, small, large);
    if (has_positive && i == 0) {
      part[0] = w.beta * (std::max(-x[0], 0.0f) + tail[0]);
      slope[0] = -w.beta * (x[0] < 0 ? large[0] : small[0]);
    }
    const mask real = first(n - i);
    loss += pick(real, part * share, lanes{});
    store(s + i, pick(real, slope * (share * w.scale), lanes{}));
  }
  return loss;
}

// Sampled softmax over a whole row of n scores, the positive first.
static float softmax(float* s, int64_t n, const Work& w) {
  const float own = s[0];
  float top = own;
  for (int64_t i = 1; i < n; i++) top = std::max(top, s[i]);
  lanes total{};
  for (int64_t i = 0; i < n; i += W) {
    const lanes e = pick(first(n - i), exp_of_negative(load(s + i) - top), lanes{});
    store(s + i, e);
    total += e;
  }
  const float whole = sum(total), factor = w.scale / whole;
  float others = 0;  // 1 − p of the positive, without cancellation
  for (int64_t i = 1; i < n; i++) others += s[i];
  for (int64_t i = 0; i < n; i += W) store(s + i, load(s + i) * factor);
  s[0] = -others * factor;
  return top - own + __builtin_logf(whole);
}

template <int V>
static int run(Work& w) {
  constexpr int64_t D = V * W;
  const int64_t width = w.k + 1, T = w.threads;
  const int64_t tile = w.softmax ? width : 64;  // a tile's rows stay in the first cache
  std::vector<std::vector<int32_t>> cursor(T, std::vector<int32_t>(w.rows));
  std::vector<int32_t> begin(w.rows + 1);  // of each item's pairs
  std::vector<int64_t> count(T);
  std::vector<Pair> sorted(std::min(w.chunk, w.positions) * width);
  std::vector<double> loss(T), d_bias(T);
  std::vector<char> wrong(T);
  std::barrier gate(T);

  auto worker = [&](int64_t me) {
    std::vector<float> slope(width + W);
    std::vector<int32_t> item(width + W);  // what follows the last one is row 0, with slope 0
    auto& mine = cursor[me];
    const int64_t low = w.rows * me / T, high = w.rows * (me + 1) / T;
    for (int64_t start = 0; start < w.positions; start += w.chunk) {
      const int64_t n = std::min(w.chunk, w.positions - start);
      const int64_t from = start + n * me / T, to = start + n * (me + 1) / T;

      // 1. Counting sort: how many pairs has each item, and where do this thread's begin?
      std::fill(mine.begin(), mine.end(), 0);
      auto tally = [&](int64_t i) {
        if ((uint64_t)i < (uint64_t)w.rows) mine[i]++;
        else wrong[me] = 1;
      };
      for (int64_t p = from; p < to; p++)
        if (w.positives[p]) {
          tally(w.positives[p]);
          for (int64_t j = p * w.k; j < (p + 1) * w.k; j++) tally(w.negatives[j]);
        }
      gate.arrive_and_wait();
      if (std::count(wrong.begin(), wrong.end(), 1)) return;
      count[me] = 0;
      for (auto& other : cursor)
        for (int64_t i = low; i < high; i++) count[me] += other[i];
      gate.arrive_and_wait();
      int32_t at = 0;
      for (int64_t t = 0; t < me; t++) at += count[t];
      for (int64_t i = low; i < high; i++) {
        begin[i] = at;
        for (auto& other : cursor) at += std::exchange(other[i], at);
      }
      if (me == T - 1) begin[w.rows] = at;
      gate.arrive_and_wait();

      // 2. Each position: scores, slopes, its own gradient; its pairs go to their items' places.
      for (int64_t p = from; p < to; p++) {
        const float* hidden = w.hidden + p * D;
        if (!w.positives[p]) {  // padding
          std::fill_n(w.d_hidden + p * D, D, 0.0f);
          continue;
        }
        item[0] = w.positives[p];
        for (int64_t j = 0; j < w.k; j++) item[j + 1] = w.negatives[p * w.k + j];
        lanes gradient[V] = {}, slopes{}, part{};
        for (int64_t b = 0; b < width; b += tile) {
          const int64_t m = std::min(tile, width - b);
          score<V>(hidden, w, &item[b], (m + W - 1) / W * W, &slope[0]);
          if (w.softmax) loss[me] += softmax(&slope[0], m, w);
          else part += gbce(&slope[0], m, b == 0, w);
          for (int64_t i = 0; i < m; i += W) slopes += load(&slope[i]);
          for (int64_t i = 0; i < m; i++) {
            const float* row = w.table + (int64_t)item[b + i] * D;
            for (int j = 0; j < V; j++) gradient[j] += slope[i] * load(row + j * W);
            sorted[mine[item[b + i]]++] = {(int32_t)(p - start), slope[i]};
          }
        }
        loss[me] += sum(part);
        d_bias[me] += sum(slopes);
        for (int j = 0; j < V; j++) store(w.d_hidden + p * D + j * W, gradient[j]);
      }
      gate.arrive_and_wait();

      // 3. Each item: the sum over its pairs. Threads share the pairs, not the items, equally.
      auto cut = [&](int64_t t) {
        return std::lower_bound(begin.begin(), begin.end() - 1, (int64_t)begin[w.rows] * t / T) - begin.begin();
      };
      const int64_t last = me == T - 1 ? w.rows : cut(me + 1);
      for (int64_t i = me ? cut(me) : 0; i < last; i++) {
        if (start && begin[i] == begin[i + 1]) continue;
        float* out = w.d_table + i * D;
        lanes gradient[V] = {};
        if (start)
          for (int j = 0; j < V; j++) gradient[j] = load(out + j * W);
        for (int64_t q = begin[i]; q < begin[i + 1]; q++) {
          const float* hidden = w.hidden + (start + sorted[q].position) * D;
          for (int j = 0; j < V; j++) gradient[j] += sorted[q].slope * load(hidden + j * W);
        }
        for (int j = 0; j < V; j++) store(out + j * W, gradient[j]);
      }
      gate.arrive_and_wait();
    }
  };

  together(w.pool, T, worker);
  w.loss = w.d_bias = 0;
  for (int64_t t = 0; t < T; t++) {
    w.loss += loss[t] * w.scale;
    w.d_bias += d_bias[t];
  }
  return std::count(wrong.begin(), wrong.end(), 1) ? 1 : 0;
}

// 0: done; 1: an item lies outside the table; 2: this d was not compiled.
extern "C" int sampled(Work* w, int64_t d) {
  switch (d) {
    case 16: return run<1>(*w);
    case 32: return run<2>(*w);
    case 48: return run<3>(*w);
    case 64: return run<4>(*w);
    case 96: return run<6>(*w);
    case 128: return run<8>(*w);
    case 256: return run<16>(*w);
    default: return 2;
  }
}

// --- the optimisers of a table of which few rows are touched: see rows.py -------------------------

struct Update {  // as native.py's _Update
  float *table, *mean, *square;             // (N, d); without mean Adagrad's, square being (N,)
  const int64_t *rows, *begin, *order;      // (n,), (n + 1,): of each row's values; (m,) which they are
  const float *values, *keep, *rate, *root; // (m, d); (n,): what decay leaves, lr, and √ of Adam's
  int64_t n, d, threads;
  float beta2, left, fresh, eps;  // left = 1 − β₁ and fresh = 1 − β₂, to their own last bit
  Pool pool;
};

// Threads share the values equally; a row is one thread's, and is summed in the values' order.
extern "C" void update(Update* given) {
  const Update& u = *given;
  const int64_t d = u.d;
  auto cut = [&](int64_t t) {
    return std::lower_bound(u.begin, u.begin + u.n, u.begin[u.n] * t / u.threads) - u.begin;
  };
  auto worker = [&](int64_t me) {
    std::vector<float> sum(d);
    float* g = sum.data();
    const int64_t last = me == u.threads - 1 ? u.n : cut(me + 1);
    for (int64_t i = me ? cut(me) : 0; i < last; i++) {
      if (i + 2 < last)  // rows lie anywhere: ask for one while two others are worked on
        for (int64_t j = 0; j < d; j += W) {
          const int64_t at = u.rows[i + 2] * d + j;
          __builtin_prefetch(u.table + at, 1);
          if (u.mean) {
            __builtin_prefetch(u.mean + at, 1);
            __builtin_prefetch(u.square + at, 1);
          }
        }
      std::fill_n(g, d, 0.0f);
      for (int64_t q = u.begin[i]; q < u.begin[i + 1]; q++) {
        const float* value = u.values + u.order[q] * d;
        for (int64_t j = 0; j < d; j++) g[j] += value[j];
      }
      const float keep = u.keep[i], rate = u.rate[i];
      float* w = u.table + u.rows[i] * d;
      if (!u.mean) {
        float& total = u.square[u.rows[i]];
        double squares = 0;
        for (int64_t j = 0; j < d; j++) squares += (double)g[j] * g[j];
        total += (float)(squares / d);
        const float step = rate / (std::sqrt(total) + u.eps);
        for (int64_t j = 0; j < d; j++) w[j] = w[j] * keep - step * g[j];
        continue;
      }
      float *m = u.mean + u.rows[i] * d, *v = u.square + u.rows[i] * d;
      const float root = u.root[i];
      for (int64_t j = 0; j < d; j++) {
        m[j] += u.left * (g[j] - m[j]);
        v[j] = u.beta2 * v[j] + u.fresh * g[j] * g[j];
        w[j] = w[j] * keep - rate * m[j] / (std::sqrt(v[j]) / root + u.eps);
      }
    }
  };
  together(u.pool, u.threads, worker);
}
