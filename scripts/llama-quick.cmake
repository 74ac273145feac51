# Included right after llama.cpp's project(): leaves out its C++ `common` library, which Python never calls and which takes most
# of the build. A normal variable hides the cache entry that llama-cpp-python forces to ON.
set(LLAMA_BUILD_COMMON OFF)
