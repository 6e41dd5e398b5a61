// The few functions of ONNX Runtime's C interface that score.cpp calls.
//
// The Python wheel of ONNX Runtime holds the library but not its headers. The table of functions only ever grows at its
// end, so the places below hold for every release since 1.13. Where onnxruntime_c_api.h is installed, use it instead.

#pragma once

#include <cstddef>
#include <cstdint>

namespace ort {

struct Status;
struct Env;
struct Options;
struct Session;
struct Value;
struct Memory;
struct TypeInfo;
struct Shape;

using Table = void* const*;

struct Base {
    Table (*api)(std::uint32_t version);
    const char* (*version)();
};

extern "C" const Base* OrtGetApiBase();

constexpr std::uint32_t kVersion = 13;
constexpr int kUint8 = 2, kLogError = 3, kArenaAllocator = 1, kDefaultMemory = 0;

// Place of each function in the table.
enum Function : int {
    GetErrorMessage = 2,
    CreateEnv = 3,
    CreateSession = 7,
    Run = 9,
    CreateSessionOptions = 10,
    SessionGetInputTypeInfo = 33,
    CreateTensorWithDataAsOrtValue = 49,
    GetTensorMutableData = 51,
    CastTypeInfoToTensorInfo = 55,
    GetDimensions = 62,
    CreateCpuMemoryInfo = 69,
    ReleaseEnv = 92,
    ReleaseStatus = 93,
    ReleaseMemoryInfo = 94,
    ReleaseSession = 95,
    ReleaseValue = 96,
    ReleaseTypeInfo = 98,
    ReleaseSessionOptions = 100,
};

}  // namespace ort
