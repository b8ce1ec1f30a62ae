"""GPT-2's skeleton with exchangeable parts: rotary positions, SwiGLU, mixtures of experts, sliding windows, …"""
