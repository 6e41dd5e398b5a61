// Score PNG images with a model that `adctl export --format onnx` wrote: the score of each, its verdict and the time.
//
//     score model.onnx THRESHOLD image.png ...
//
// Decoding and resizing equal those of adctl, and the graph holds everything after them, so the scores are those of
// `adctl score`. This covers models that squash the whole image to their input and images at least as large as it; not
// models with a region of interest, tiles, padding or more than 8 bits.

#include <png.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "onnxruntime_abi.hpp"

namespace {

constexpr int kChannels = 3;

struct Image {
    int height = 0, width = 0;
    std::vector<std::uint8_t> pixels;  // [height, width, 3], RGB
};

Image read_png(const std::string& path) {
    png_image png;
    std::memset(&png, 0, sizeof png);
    png.version = PNG_IMAGE_VERSION;
    if (!png_image_begin_read_from_file(&png, path.c_str())) throw std::runtime_error(path + ": " + png.message);
    png.format = PNG_FORMAT_RGB;
    Image image{static_cast<int>(png.height), static_cast<int>(png.width), {}};
    image.pixels.resize(PNG_IMAGE_SIZE(png));
    if (!png_image_finish_read(&png, nullptr, image.pixels.data(), 0, nullptr))
        throw std::runtime_error(path + ": " + png.message);
    return image;
}

struct Weight {
    int to, from;
    float share;
};

// Shares of the pixels of a line of `size` pixels in a line of `wanted` pixels: the areas that they have in common.
std::vector<Weight> area_weights(int size, int wanted) {
    constexpr double kNothing = 1e-3;
    const double scale = static_cast<double>(size) / wanted;
    std::vector<Weight> weights;
    for (int to = 0; to < wanted; ++to) {
        const double begin = to * scale, end = begin + scale, length = std::min(scale, size - begin);
        int last = std::min(static_cast<int>(std::floor(end)), size - 1);
        const int first = std::min(static_cast<int>(std::ceil(begin)), last);
        if (first - begin > kNothing) weights.push_back({to, first - 1, static_cast<float>((first - begin) / length)});
        for (int from = first; from < last; ++from) weights.push_back({to, from, static_cast<float>(1.0 / length)});
        if (end - last > kNothing)
            weights.push_back({to, last, static_cast<float>(std::min(std::min(end - last, 1.0), length) / length)});
    }
    return weights;
}

// Average over areas, as cv2.resize does with INTER_AREA.
Image shrink(const Image& image, int height, int width) {
    if (image.height == height && image.width == width) return image;
    if (image.height < height || image.width < width) throw std::runtime_error("The image is smaller than the input.");
    const auto across = area_weights(image.width, width), down = area_weights(image.height, height);
    const std::size_t line = static_cast<std::size_t>(width) * kChannels;
    std::vector<float> sums(line * height, 0.0f), row(line);
    for (const Weight& step : down) {
        std::fill(row.begin(), row.end(), 0.0f);
        const std::uint8_t* source = &image.pixels[static_cast<std::size_t>(step.from) * image.width * kChannels];
        for (const Weight& weight : across)
            for (int channel = 0; channel < kChannels; ++channel)
                row[weight.to * kChannels + channel] += weight.share * source[weight.from * kChannels + channel];
        for (std::size_t place = 0; place < line; ++place) sums[step.to * line + place] += step.share * row[place];
    }
    // OpenCV rounds halves up at half the size, and to even numbers at all others.
    const bool half = image.height == 2 * height && image.width == 2 * width;
    Image result{height, width, std::vector<std::uint8_t>(sums.size())};
    for (std::size_t place = 0; place < sums.size(); ++place) {
        const long grey = half ? static_cast<long>(sums[place] + 0.5f) : std::lrint(sums[place]);
        result.pixels[place] = static_cast<std::uint8_t>(std::clamp(grey, 0L, 255L));
    }
    return result;
}

class Model {
   public:
    explicit Model(const char* path) : table_(ort::OrtGetApiBase()->api(ort::kVersion)) {
        if (table_ == nullptr) throw std::runtime_error("This ONNX Runtime is older than 1.13.");
        call(ort::CreateEnv, ort::kLogError, "score", &env_);
        call(ort::CreateSessionOptions, &options_);
        call(ort::CreateSession, env_, path, options_, &session_);
        call(ort::CreateCpuMemoryInfo, ort::kArenaAllocator, ort::kDefaultMemory, &memory_);
        read_size();
    }

    Model(const Model&) = delete;
    Model& operator=(const Model&) = delete;

    ~Model() {
        release(ort::ReleaseMemoryInfo, memory_);
        release(ort::ReleaseSession, session_);
        release(ort::ReleaseSessionOptions, options_);
        release(ort::ReleaseEnv, env_);
    }

    float score(const Image& whole) {
        Image image = shrink(whole, height_, width_);
        const std::int64_t shape[] = {1, height_, width_, kChannels};
        ort::Value *input = nullptr, *output = nullptr;
        call(ort::CreateTensorWithDataAsOrtValue, memory_, static_cast<void*>(image.pixels.data()), image.pixels.size(),
             static_cast<const std::int64_t*>(shape), std::size_t{4}, ort::kUint8, &input);
        const char *inputs[] = {"pixels"}, *outputs[] = {"scores"};
        const ort::Value* given[] = {input};
        call(ort::Run, session_, static_cast<const void*>(nullptr), static_cast<const char* const*>(inputs),
             static_cast<const ort::Value* const*>(given), std::size_t{1}, static_cast<const char* const*>(outputs),
             std::size_t{1}, &output);
        float* values = nullptr;
        call(ort::GetTensorMutableData, output, reinterpret_cast<void**>(&values));
        const float found = values[0];
        release(ort::ReleaseValue, output);
        release(ort::ReleaseValue, input);
        return found;
    }

   private:
    // Call a function that returns a status; throw its message if it failed.
    template <typename... Arguments>
    void call(ort::Function function, Arguments... arguments) {
        auto target = reinterpret_cast<ort::Status* (*)(Arguments...)>(table_[function]);
        if (ort::Status* status = target(arguments...)) {
            std::string message = reinterpret_cast<const char* (*)(ort::Status*)>(table_[ort::GetErrorMessage])(status);
            release(ort::ReleaseStatus, status);
            throw std::runtime_error(message);
        }
    }

    template <typename Thing>
    void release(ort::Function function, Thing* thing) {
        if (thing != nullptr) reinterpret_cast<void (*)(Thing*)>(table_[function])(thing);
    }

    // Read height and width of the input [batch, height, width, 3].
    void read_size() {
        ort::TypeInfo* info = nullptr;
        const ort::Shape* shape = nullptr;
        std::int64_t sizes[4] = {0, 0, 0, 0};
        call(ort::SessionGetInputTypeInfo, session_, std::size_t{0}, &info);
        call(ort::CastTypeInfoToTensorInfo, info, &shape);
        call(ort::GetDimensions, shape, static_cast<std::int64_t*>(sizes), std::size_t{4});
        release(ort::ReleaseTypeInfo, info);
        height_ = static_cast<int>(sizes[1]);
        width_ = static_cast<int>(sizes[2]);
        if (height_ <= 0 || width_ <= 0 || sizes[3] != kChannels)
            throw std::runtime_error("The input of this model is not a colour image of a fixed size.");
    }

    ort::Table table_;
    ort::Env* env_ = nullptr;
    ort::Options* options_ = nullptr;
    ort::Session* session_ = nullptr;
    ort::Memory* memory_ = nullptr;
    int height_ = 0, width_ = 0;
};

}  // namespace

int main(int count, char** words) {
    if (count < 4) {
        std::fprintf(stderr, "score MODEL.onnx THRESHOLD IMAGE.png...\n");
        return 2;
    }
    try {
        Model model(words[1]);
        const double threshold = std::atof(words[2]);
        for (int number = 3; number < count; ++number) {
            const auto start = std::chrono::steady_clock::now();
            const float score = model.score(read_png(words[number]));
            const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
            std::printf("%s %.9g %s %.3f\n", words[number], score, score > threshold ? "reject" : "good", time.count());
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
