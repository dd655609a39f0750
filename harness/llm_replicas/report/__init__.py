"""What a run ends with: one self-contained page, JUnit, GitHub annotations and a JSON verdict."""
