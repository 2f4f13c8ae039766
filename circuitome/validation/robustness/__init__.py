"""Would another day, another task or another method have given the same circuit?"""
