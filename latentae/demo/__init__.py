"""The command `latentae demo`: a local page that shows reconstructions and latents of an image.

``compute`` turns images into pictures and numbers, ``page`` lays them out with Gradio, and ``serve`` opens
the models and runs the page. ``page`` alone imports Gradio, after ``serve`` has set its environment.
"""
